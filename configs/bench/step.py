"""The speed of training: images a second and utilisation of the recover recipe's stages, on whatever devices there are.

    python -m launch.bench --config=configs/bench/step.py --workdir=runs/bench_step             # a GPU or a TPU
    python -m launch.bench --config=configs/bench/step.py:size=small --workdir=runs/bench_step  # two CPU cores

B/16 at 224 and L/14 at 336 pixels in half precision, random weights, with pictures that are on the devices already
and with JPEGs (500 x 375) that are read and decoded from an ArrayRecord data set, which it writes itself. Utilisation
is of the published dense bf16 peak (train/chips.py), where the device is known; operations are those of the step's
products (train/arithmetic.py). Beside the step stand the passes that it is made of, each by itself: `step_of_parts`
is the step in units of teachers + student + the adapter's backward pass. The workdir gets bench.json.

Small: the bundled CLIP's geometry in fp32; about 3 minutes on two cores of an AMD EPYC. The full size has not been
run: no GPU was at hand.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

SIZES = {
    # (model, size in units of the native one, pictures a step on each device).
    "full": dict(dtype="bfloat16", cases=(("clip_b16", 1.0, 64), ("clip_l14", 1.5, 16)), steps=30, jpegs=4096),
    "small": dict(dtype="float32", cases=(("tiny", 2.0, 16),), steps=5, jpegs=64),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: size=full|small."""
    size = parse_arg(arg, size="full")["size"]
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    own = dict(recipe="recover", repetitions=5, picture=(375, 500))
    settings = dict(compute=dict(remat="none", microbatches=1))  # of the recipe
    return ConfigDict(dict(bench="step", settings=settings, **own, **SIZES[size]))
