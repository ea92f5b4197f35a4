"""A CLIP of random weights and a folder of pictures, small enough to take one step of every recipe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from launch.adaptation import adaptation_task
from spatial_clip_jax.api import TINY, SpatialClip
from spatial_clip_jax.data.scenes.vocabulary import pair_phrases
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import init_module, split_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, VisionSpec
from spatial_clip_jax.train.placement import place
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.state import TrainState, new_state
from spatial_clip_jax.train.task import Task

NOUNS = tuple(pair_phrases())


def small_clip() -> SpatialClip:
    """Four blocks of 16 channels on pictures of 2 x 2 patches; it reads text as the bundled model does."""
    text = replace(named_spec("tiny").text_tower, width=16, layers=1, heads=2, mlp_width=32)
    spec = ClipSpec(VisionSpec(16, 8, 16, 4, 2, 32), text, 16)
    params = split_params(init_module(lambda rngs: Clip(spec, rngs=rngs), 0))[1]
    return SpatialClip(spec, params, TINY / "tokenizer.json")


def write_pictures(folder: Path, count: int) -> Path:
    """Coloured blocks on noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 64, (32, 32, 3), np.uint8)
        x, y = rng.integers(0, 20, 2)
        pixels[y : y + 12, x : x + 12] += rng.integers(60, 190, 3).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def small_config(config: ConfigDict, pictures: Path, layers: int) -> ConfigDict:
    """The recipe on the folder's pictures, for a tower of so many blocks."""
    config.data.update(kind="folder", path=str(pictures))
    return fitted(config, layers)


def fitted(config: ConfigDict, layers: int) -> ConfigDict:
    """The recipe for a shallower tower, where it trains all blocks of its own, with nouns given."""
    if "region_text" in config.objectives:
        config.objectives.region_text.nouns = NOUNS
    if config.adapter.blocks > layers and "registers" in config.objectives:
        config.objectives.registers.attention_layers = (0, 1)
    for stage in filter(None, (config, config.refiner)):
        stage.adapter.blocks = min(stage.adapter.blocks, layers)
    if config.compute.scan_layers:
        config.compute.scan_layers = max(0, layers - config.adapter.blocks)
    return config


def task_of(config: ConfigDict, model: SpatialClip, refiner: SpatialClip | None, folder: Path) -> Task:
    """What the stage trains, as the main job puts it together."""
    return adaptation_task(config, model, read_section(AdapterSpec, config.adapter, "adapter"), refiner, folder)


def start(config: ConfigDict, task: Task, mesh: Mesh) -> tuple[TrainState, Any]:
    """The first state and the jitted step on a mesh, as the loop makes them."""
    placement = place(task.params, task.frozen, read_settings(config), mesh)
    # By way of NumPy, for the step consumes its state, and on one device a copy may share the caller's memory.
    params: Any = jax.device_put(jax.tree.map(np.array, task.params), placement.shardings.params)
    state = jax.device_put(new_state(params, placement.optimizer), placement.shardings)
    return state, placement.step(task.loss_fn)
