"""What all recipes share: the models with their sizes, the pictures, the budget, the optimizer, the benchmark.

    python -m launch.train --config=configs/adapt/RECIPE.py:model=clip_b16 --workdir=DIR \
      --config.data.kind=folder --config.data.path=PICTURES --config.measure=False
"""

from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from configs.common import SHARDINGS, parse_arg
from spatial_clip_jax.fusion.settings import FusionSettings

# The frozen tower's fused views: windows' global embeddings pooled by a read-out's correlations.
FUSION = asdict(FusionSettings())
# The usual multi-scale sliding window: dense maps of overlapping windows, averaged.
SLIDING = dict(FUSION, rule="overlap_add", windows=((0.5, 0.25), (1.0, 0.5)))


@dataclass(frozen=True)
class Model:
    """A CLIP and the sizes that suit it.

    source: as `load` takes it. layers: of its vision tower. blocks: of its last ones, those that are trained. scale:
    input size of the student in units of the native one. steps, batch_size, learning_rate, warmup: the budget.
    """

    source: str
    layers: int
    blocks: int
    scale: float
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int


# The bundled model's numbers are those of quickstart. The others' follow published recipes, at 560 pixels as in DeCLIP
# (arXiv 2505.04410); nothing here has been trained with them.
MODELS = {
    "tiny": Model("tiny", 6, 3, 2.0, 600, 16, 1e-3, 50),
    "clip_b16": Model("openai/clip-vit-base-patch16", 12, 4, 2.5, 10_000, 64, 4e-5, 500),
    "clip_l14": Model("openai/clip-vit-large-patch14", 24, 6, 2.5, 10_000, 64, 2e-5, 500),
    "eva02_b16": Model("timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k", 12, 4, 2.5, 10_000, 64, 4e-5, 500),
    "eva02_l14": Model("timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k", 24, 6, 5 / 3, 10_000, 64, 2e-5, 500),
    "siglip2_so400m": Model("google/siglip2-so400m-patch16-384", 27, 6, 4 / 3, 10_000, 64, 2e-5, 500),
}


@dataclass(frozen=True)
class Asked:
    """What a recipe's argument asks for."""

    model: Model
    name: str
    steps: int
    batch_size: int
    seed: int
    variant: str
    world: str
    sharding: str
    dtype: str


def read_arg(arg: str | None) -> Asked:
    """`arg`: model=NAME (of MODELS), steps=N, batch_size=N, seed=N, variant=copy|residual|lora, world=NAME,
    sharding=NAME (of SHARDINGS; with --config.mesh.fsdp=N or model=N), dtype=float32|bfloat16 (see models/compute.py).

    ValueError for an unknown model, sharding or key, listing the valid ones.
    """
    own = dict(seed=0, variant="copy", world="quickstart", sharding="replicate", dtype="")
    name = parse_arg(arg, model="tiny", steps=0, batch_size=0, **own)["model"]
    if name not in MODELS:
        raise ValueError(f"config argument model={name!r}; valid: {', '.join(MODELS)}")
    model = MODELS[name]
    values = parse_arg(arg, model=name, steps=model.steps, batch_size=model.batch_size, **own)
    if values["sharding"] not in SHARDINGS:
        raise ValueError(f"config argument sharding={values['sharding']!r}; valid: {', '.join(SHARDINGS)}")
    values["dtype"] = values["dtype"] or ("float32" if name == "tiny" else "bfloat16")
    return Asked(model, values.pop("model"), **values)


def recipe(asked: Asked, **sections: Any) -> ConfigDict:
    """The config of a recipe: what all share, with the sections that are its own."""
    config = ConfigDict(_own(_shared(asked) | sections))
    trained = [stage.adapter.blocks for stage in (config, config.refiner) if stage]
    # Of a deep tower, the layers before the input of what is trained, which alone keep no intermediates.
    config.compute.scan_layers = 0 if asked.name == "tiny" else asked.model.layers - max(trained)
    return config


def _own(value: Any) -> Any:
    """Copies of nested dicts: a ConfigDict keeps what stands in two places one, so a setting would change both."""
    return {name: _own(item) for name, item in value.items()} if isinstance(value, dict) else value


def adapter(asked: Asked, readout: str, **changes: Any) -> dict[str, Any]:
    """The adapter section: copies of the model's last blocks, unless `changes` says otherwise."""
    return (
        dict(variant=asked.variant, blocks=asked.model.blocks, readout=readout, ring=0, rank=8, lora_alpha=16.0)
        | changes
    )


def optimizer(asked: Asked, steps: int, **changes: Any) -> dict[str, Any]:
    """AdamW. eps as in CLIP: a key bias has no gradient but rounding, which a smaller one would blow up."""
    warmup = min(asked.model.warmup_steps, steps // 4)
    rate = asked.model.learning_rate
    fixed = dict(name="adamw", weight_decay=0.05, eps=1e-6, clip_norm=1.0, average=0.0, layer_decay=1.0)
    return fixed | dict(learning_rate=rate, warmup_steps=warmup) | changes


def _shared(asked: Asked) -> dict[str, Any]:
    bundled = asked.name == "tiny"
    return dict(
        steps=asked.steps,
        batch_size=asked.batch_size,
        seed=asked.seed,
        model=asked.model.source,
        # Input size of the student and of the teacher's whole view, in units of the native one.
        scale=asked.model.scale,
        data=_data(asked),
        teacher=FUSION,
        # Keeps every picture's fused map on disk after its first use: right for data seen many times.
        cache_teacher=bundled,
        flip=True,  # pictures are mirrored at random, with their maps
        # A stage before, whose adapter teaches this one under the name "refiner"; {} for none.
        refiner={},
        # What the adapter is at first: "tower", the frozen tower's own blocks, or "refiner", the stage before's.
        start="tower",
        optimizer=optimizer(asked, asked.steps),
        # How the step computes: models/compute.py says what each does.
        compute=dict(dtype=asked.dtype, scan_layers=0, remat="none", microbatches=1),
        # Devices along each axis, one may be -1 for all that are left; and where parameters lie on them.
        mesh=dict(data=-1, fsdp=1, model=1),
        sharding=SHARDINGS[asked.sharding],
        # The newest `keep` checkpoints stay, those of every `keep_every` steps, and the `keep_best` with the largest
        # `best`, a metric of the periodic evaluation such as "evaluate/average" ("-evaluate/..." for the smallest).
        checkpoint=dict(every_steps=200, keep=2, keep_every=0, best="", keep_best=1),
        # Steps whose loss or gradient is not finite are skipped; more than `most` of the last `window` end the run.
        guard=dict(window=100, most=5),
        # A host without progress for so long ends the job with status 75, for a launcher to restart it; 0 for never.
        watchdog=dict(seconds=600.0),
        log_every=10,
        # Steps between two looks at the adapter as it is (see `_evaluation`); 0 for none.
        evaluate_every=0,
        evaluation=_evaluation(),
        # Where curves and pictures go besides the workdir's own files: "tensorboard", "wandb", or both with a comma.
        track="tensorboard",
        # A trace of `steps` steps into the workdir's folder profile/, after `start` others; 0 for none.
        profile=dict(start=10, steps=0),
        distributed="off",
        # Whether the bundled world's benchmark is run at the end; off for other data.
        measure=bundled,
        benchmark=_benchmark(asked),
    )


def _data(asked: Asked) -> dict[str, Any]:
    """kind: "scenes", the bundled world, written below `dir`; or "folder" of pictures or "tfds" version, at `path`; or
    "mixture", of parts dict(kind=, path=, split=, weight=) in the tuple `mixture`, see docs/data.md.

    boxes, nouns: what the pictures come with, for terms that ask for boxes="given", see data/sources.py.
    processes: that decode, for decoders that hold Python's lock; 0 for threads, which suit JPEG.
    """
    kind = "scenes" if asked.name == "tiny" else "folder"
    own = dict(path="", split="unlabeled", boxes="", nouns="", mixture=(), processes=0)
    return dict(kind=kind, world=asked.world, dir="data", **own, max_corrupt_fraction=0.01)


def _evaluation() -> dict[str, Any]:
    """pictures: of the bundled world's validation split, or of `data`, a set of one's own that nothing trains on, whose
    losses are then measured (kind, "folder" or "tfds", path and so on as in `_data`; an empty path for none); shown:
    those whose maps are drawn, 0 for none.
    """
    return dict(pictures=64, shown=4, data=dict(kind="folder", path="", split="", boxes="", nouns=""))


def _benchmark(asked: Asked) -> dict[str, Any]:
    """Rows of the table, () for all; a bundled world; pictures of each split; the input sizes to choose from, in units
    of the native one, and those of the fused rows, () for what suits the world; whether the tokens' k-means is measured
    too; the settings of the rows "fusion" and, with the adapter as read-out, "adapter+fusion".
    """
    return dict(
        rows=(),
        world=asked.world,
        validation=128,
        test=256,
        singles=1024,
        scales=(),
        teacher_scales=(),
        unsupervised=False,
        fusion=FUSION,
    )


def crops(asked: Asked) -> dict[str, Any]:
    """CLIPSelf's term: at most twenty cells a picture, of the bundled world four, for the sake of its budget."""
    return dict(region_alignment=dict(weight=1.0, boxes="grid", max_boxes=_cells(asked), context=1.0))


def nouns(asked: Asked) -> dict[str, Any]:
    """RegionCLIP's term, over as many cells as CLIPSelf's; no nouns: those of the bundled world, on its pictures alone.

    The weight is our own, for up to a hundred sigmoids of each region are summed.
    """
    return dict(region_text=dict(weight=0.1, nouns=(), labels="tower", boxes="grid", max_boxes=_cells(asked)))


def correlations(teacher: str, weight: float = 0.3) -> dict[str, Any]:
    """The correlations of a teacher's map within random regions (SCD)."""
    regions = dict(temperature=0.2, regions="random", max_boxes=4, roi_size=7)
    return dict(spatial_correlation=dict(weight=weight, teacher=teacher, **regions))


def _cells(asked: Asked) -> int:
    return 4 if asked.name == "tiny" else 20


def refiner(asked: Asked, steps: int) -> dict[str, Any]:
    """The stage before of the R-SC recipes: copies of the last blocks learn to see the whole as they see crops."""
    return dict(
        steps=steps,
        adapter=adapter(asked, "value"),
        objectives=dict(refinement=dict(weight=1.0, teacher="value", crops=3, temperature=0.2)),
        optimizer=optimizer(asked, steps),
    )


def two_stages(asked: Asked, **sections: Any) -> ConfigDict:
    """A recipe whose first third of the steps trains the Refiner: the budget is that of the recipes without one."""
    first = asked.steps // 3
    rest = asked.steps - first
    return recipe(asked, steps=rest, refiner=refiner(asked, first), optimizer=optimizer(asked, rest), **sections)
