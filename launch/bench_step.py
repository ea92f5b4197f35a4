"""What `launch.bench` measures of training: steps of a recipe with pictures that are there, and with JPEGs to decode;
and a step against the passes that it is made of.
"""

import functools
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from launch.compiled import spec_of
from launch.noise import noise_jpeg
from launch.shapes import PlacedStep, StageShapes, stage_shapes
from launch.step_parts import StepParts
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.evaluate.speed import medians, seconds
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.train.arithmetic import of_jaxpr
from spatial_clip_jax.train.chips import chip_of
from spatial_clip_jax.train.prefetch import Prefetch
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.sharding import make_mesh, split_batch
from spatial_clip_jax.train.state import TrainState
from spatial_clip_jax.train.workdir import held_workdir

logger = logging.getLogger(__name__)
Rows = dict[str, dict[str, Any]]
GIB = 2**30
WARM = 2  # steps that do not count


@dataclass(frozen=True)
class Case:
    """A model of the recipes at a size in units of its native one, with so many pictures a step on each device."""

    model: str
    scale: float
    per_device: int

    def __post_init__(self) -> None:
        if type(self.per_device) is not int or self.per_device < 1 or self.scale <= 0:
            raise ValueError(f"config.cases must be (model, scale, pictures a device), got {self}")

    def stages(self, config: ConfigDict) -> list[StageShapes]:
        """Its stages' shapes; ValueError for a model or a setting that the recipe does not know."""
        recipe = import_module(f"configs.adapt.{config.recipe}").get_config(f"model={self.model},dtype={config.dtype}")
        own = {"scale": self.scale, "cache_teacher": False, "batch_size": self.per_device * jax.device_count()}
        try:
            recipe.lock().update(own | config.settings.to_dict())
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"config.settings {sorted(config.settings)}: {error}") from error
        return stage_shapes(recipe, spec_of(recipe.model))


def main(config: ConfigDict, workdir: Path) -> Rows:
    """Measures all stages of all cases, and writes the rows to `workdir/bench.json` after each."""
    if min(config.steps, config.repetitions, config.jpegs) < 1:
        raise ValueError("config.steps, config.repetitions and config.jpegs must be at least 1")
    cases = [Case(*case) for case in config.cases]
    stages = [(f"{case.model}, stage {i}", stage) for case in cases for i, stage in enumerate(case.stages(config), 1)]
    rows: Rows = {}
    with held_workdir(workdir), tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder), config.jpegs, tuple(config.picture))
        for name, stage in tqdm(stages, desc="measured", unit="stage"):
            rows[name] = measured(stage, jpegs, config)
            content = {"environment": environment(), "config": config.to_dict(), "step": rows}
            write_whole(workdir / "bench.json", json.dumps(content, indent=2).encode())
    return rows


def measured(stage: StageShapes, jpegs: Path, config: ConfigDict) -> dict[str, Any]:
    """A stage's row: its step with pictures that are there and with JPEGs to decode, and the passes by themselves."""
    mesh = make_mesh(read_settings(stage.config).mesh)
    step = stage.placed_step(mesh)
    with jax.set_mesh(mesh):
        running = Running(step, *random_state(step))
        row = {"pictures": stage.config.batch_size, "side": stage.batch["image"].shape[1]}
        row |= running.synthetic(config.steps, stage.config.batch_size)
        row |= running.decoding(_stream(stage, jpegs), mesh, stage.config.batch_size, config.steps)
        return row | _against_parts(running, StepParts(stage), config.repetitions)


class Running:
    """A compiled step with its state, which every step consumes."""

    def __init__(self, step: PlacedStep, state: TrainState, frozen: Params, batch: Params):
        self.state, self.frozen, self.batch = state, frozen, batch
        self._flops = of_jaxpr(step.traced.jaxpr) / jax.device_count()
        self._step = step.traced.lower().compile()
        self._memory = self._step.memory_analysis()

    def step(self, batch: Params) -> Any:
        """Takes a step; its metrics."""
        self.state, metrics = self._step(self.state, self.frozen, batch)
        return metrics

    def synthetic(self, steps: int, images: int) -> dict[str, Any]:
        """Of steps with the one batch that is on the devices: seconds, pictures a second, arithmetic, memory."""
        for _ in range(WARM):
            jax.block_until_ready(self.step(self.batch))
        start = time.perf_counter()
        for _ in range(steps):
            metrics = self.step(self.batch)
        jax.block_until_ready(metrics)
        each = (time.perf_counter() - start) / steps
        chip, found = chip_of(jax.devices()[0]), {"seconds": each, "images_per_second": images / each}
        found |= {"tflop_per_second_a_device": self._flops / each / 1e12}
        found |= {"utilisation": self._flops / each / chip.flops} if chip else {}
        held = self._memory.argument_size_in_bytes + self._memory.temp_size_in_bytes if self._memory else 0
        return found | ({"gib": held / GIB} if held else {})

    def decoding(self, stream: PictureStream, mesh: Mesh, images: int, steps: int) -> dict[str, Any]:
        """Of steps with pictures as the loop reads them: pictures a second, and the share of time spent waiting."""
        waited, metrics, start = 0.0, None, 0.0
        with Prefetch(stream, split_batch(mesh, images), images) as batches:
            for number in range(steps + WARM):
                if number == WARM:
                    jax.block_until_ready(metrics)
                    start, waited = time.perf_counter(), 0.0
                batch, wait = cast(tuple[Params, float], batches.next(metrics))  # nothing asks it to stop
                waited += wait
                metrics = self.step(batch)
            jax.block_until_ready(metrics)
            took = time.perf_counter() - start
        return {"images_per_second_of_jpegs": steps * images / took, "waited": waited / took}


def _against_parts(running: Running, parts: StepParts, repetitions: int) -> dict[str, Any]:
    """Medians of the passes by themselves, in turns with the step, and the step in units of their sum."""
    params, frozen, batch = jax.tree.map(jnp.copy, running.state.params), running.frozen, running.batch
    teachers, student = jax.jit(parts.teachers), jax.jit(parts.student)
    tokens = jax.jit(parts.trunk)(frozen, batch)
    linearised = jax.jit(lambda params, tokens: jax.vjp(lambda tree: parts.adapter(tree, frozen, tokens), params))
    maps, back = linearised(params, tokens)
    backward = jax.jit(lambda back, maps: back(maps))
    runs: dict[str, Callable[[], Any]] = {
        "step": lambda: running.step(batch),
        "teachers": lambda: teachers(params, frozen, batch),
        "student": lambda: student(params, frozen, batch),
        "adapter_backward": lambda: backward(back, maps),
    }
    found = medians({name: functools.partial(seconds, run) for name, run in runs.items()}, repetitions)
    return found | {"step_of_parts": found["step"] / (sum(found.values()) - found["step"])}


def random_state(step: PlacedStep) -> tuple[TrainState, Params, Params]:
    """(state, frozen, batch) that lie where the step wants them: small random parameters, pictures of noise."""
    state = step.placement.state
    key = jax.random.key(0)
    params, frozen, batch = (_random(tree, key) for tree in (state.params, step.frozen, step.batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), state)
    return TrainState(zeros.step, params, zeros.opt_state), frozen, batch


def _random(tree: Params, key: jax.Array) -> Params:
    """Made where it lies, so that no device holds more than its own."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.uint8:
            return jax.random.randint(key, leaf.shape, 0, 256).astype(jnp.uint8)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.jit(lambda: jax.tree.map(fill, tree), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, tree))()


def _stream(stage: StageShapes, jpegs: Path) -> PictureStream:
    source = open_source({"kind": "tfds", "path": str(jpegs), "split": "train"})
    height, width = stage.batch["image"].shape[1:3]
    return PictureStream(source, stage.config.batch_size, (height, width), 0, jax.process_index(), jax.process_count())


def write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A TFDS data set in ArrayRecord, of JPEGs (height, width) as smooth as photographs: its version's folder."""
    import tensorflow_datasets as tfds

    class Noise(tfds.core.GeneratorBasedBuilder):
        """Smooth noise."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager: object) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            rng = np.random.default_rng(0)
            for number in range(count):
                yield number, {"image": io.BytesIO(noise_jpeg(rng, size))}

    builder = Noise(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
