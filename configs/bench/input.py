"""The speed of the input: pictures decoded and resized a second, for each core that is busy with them.

    python -m launch.bench --config=configs/bench/input.py --workdir=runs/bench_input

Photographs' size (500 x 375, about 90 KB of JPEG) to 224 x 224, by Grain's threads, by Grain's processes and, where
`.[tf]` is installed, by tf.data. About a minute on two CPU cores; the table is in docs/data.md. The workdir gets
bench.json.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Sizes are height and width; `distinct` JPEGs stand behind `records` names; `batches` are timed at a time."""
    return ConfigDict(
        dict(
            bench="input",
            picture=(375, 500),
            size=(224, 224),
            distinct=64,
            records=8192,
            batch_size=32,
            batches=20,
            repetitions=5,
            processes=2,
        )
    )
