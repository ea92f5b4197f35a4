"""The main job on the bundled model and world: spatial awareness from unlabeled pictures.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

The README holds the measured table and the time it takes.
"""

from ml_collections import ConfigDict

from configs.common import REPLICATED, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: steps=N, batch_size=N, seed=N, variant=copy|residual, world=quickstart|full|mini."""
    values = parse_arg(arg, steps=600, batch_size=16, seed=0, variant="copy", world="quickstart")
    fusion = dict(
        rule="affinity",
        readout="maskclip",
        windows=((0.5, 0.5), (1.0, 0.5)),
        temperature=0.1,
        mix=0.5,
        sigma=0.25,
        chunk=None,
        segments=(),
        segment_mix=0.5,
    )
    return ConfigDict(
        dict(
            steps=values["steps"],
            batch_size=values["batch_size"],
            seed=values["seed"],
            model="tiny",
            adapter=dict(variant=values["variant"], blocks=3, readout="maskclip"),
            # Input size of the student and of the teacher's whole view, in units of the native one.
            scale=2.0,
            # kind: "scenes", the bundled world, written below `dir`; "folder" of pictures or "tfds" version folder, at
            # `path`.
            data=dict(
                kind="scenes",
                world=values["world"],
                dir="data",
                path="",
                split="unlabeled",
                max_corrupt_fraction=0.01,
            ),
            teacher=fusion,
            # Keeps every picture's fused map on disk after its first use: right for data seen many times.
            cache_teacher=True,
            flip=True,  # pictures are mirrored at random, with their maps
            objectives=dict(
                fusion_distillation=dict(weight=1.0, teacher="fusion", centred_weight=0.5),
                region_alignment=dict(weight=0.1, boxes="grid", max_boxes=4),
                spatial_correlation=dict(weight=0.3, teacher="fusion", temperature=0.2, regions="picture"),
            ),
            # A stage before, whose adapter teaches this one under the name "refiner"; None for none.
            refiner=None,
            # eps as in CLIP: a key bias has no gradient but rounding, which a smaller eps would blow up to full steps.
            optimizer=dict(
                name="adamw", learning_rate=1e-3, warmup_steps=50, weight_decay=0.05, eps=1e-6, clip_norm=1.0
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            sharding=REPLICATED,
            checkpoint=dict(every_steps=200, keep=2),
            log_every=10,
            evaluate_every=0,
            distributed="off",
            # Whether the bundled world's benchmark is run at the end; off for other data.
            measure=True,
            # Rows of the table, () for all; a bundled world; pictures of each split; the input sizes to choose from, in
            # units of the native one, and those of the fused rows, () for what suits the world; whether the tokens'
            # k-means is measured too; the settings of the rows "fusion" and, with the adapter as read-out,
            # "adapter+fusion".
            benchmark=dict(
                rows=(),
                world=values["world"],
                validation=128,
                test=256,
                singles=1024,
                scales=(),
                teacher_scales=(),
                unsupervised=False,
                fusion=fusion,
            ),
        )
    )
