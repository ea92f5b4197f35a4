"""Every recipe: for every model as shapes at real size, and one step of each stage of a small CLIP that really runs."""

import dataclasses
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from configs import adapt
from configs.adapt.base import MODELS
from configs.evaluate import ablations, recipes
from launch.adaptation import check_stages, earlier_stage, nouns_of, read_teaching
from launch.recipes import read_plan
from launch.shapes import StageShapes, stage_shapes
from launch.train import _adapted
from launch.variations import read_variations
from spatial_clip_jax.api import TINY, SpatialClip, load
from spatial_clip_jax.data.sources import FolderSource
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import Params, flatten_params
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.placement import shapes_of
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.sharding import make_mesh
from spatial_clip_jax.train.terms import read_terms, reported
from spatial_clip_jax.train.views import STEP
from spatial_clip_jax.train.workdir import resolve
from tests.configs.small_clip import NOUNS as WORLD_NOUNS
from tests.configs.small_clip import fitted, small_clip, small_config, start, task_of, write_pictures

ADAPTER = AdapterSpec("copy", 1)
OTHER_NAMES = {"recover_l14": ("recover", "model=clip_l14")}
RECIPES = [module.name for module in pkgutil.iter_modules(adapt.__path__) if module.name not in {"base", *OTHER_NAMES}]
GEOMETRY = {
    "eva02_b16": "EVA02-CLIP-B-16",
    "eva02_l14": "EVA02-CLIP-L-14-336",
    **{name: MODELS[name].source for name in ("tiny", "clip_b16", "clip_l14", "siglip2_so400m")},
}


def recipe(name: str, arg: str = "") -> ConfigDict:
    return importlib.import_module(f"configs.adapt.{name}").get_config(arg)


def identity(config: ConfigDict) -> str:
    """What a stage trains, so that a Refiner that several recipes share is looked at once."""
    names = ("model", "scale", "adapter", "objectives", "teacher", "optimizer", "refiner", "steps")
    settings = resolve(config)
    return json.dumps([settings[name] for name in names])


def test_models_are_those_they_are_said_to_be():
    assert set(GEOMETRY) == set(MODELS)
    for name, model in MODELS.items():
        vision = named_spec(GEOMETRY[name]).vit
        assert model.layers == vision.layers > model.blocks
        side = model.scale * vision.image_size
        assert side == pytest.approx(round(side)) and round(side) % vision.patch_size == 0


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_another_name_is_the_same_recipe(name):
    same, model = OTHER_NAMES[name]
    assert resolve(recipe(name, "steps=8")) == resolve(recipe(same, f"{model},steps=8")) != resolve(recipe(same))


SLOW = ("clip_b16", "clip_l14", "eva02_b16", "eva02_l14", "siglip2_so400m")  # a quarter of a minute each


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)
def test_loss_and_gradient_of_every_recipe_have_their_shapes(model):
    """Nothing is computed. Depth changes no shape: of the frozen blocks before those that are trained, one stands for
    all.
    """
    spec = named_spec(GEOMETRY[model])
    vision = dataclasses.replace(spec.vit, layers=MODELS[model].blocks + 1)
    shallow, traced = dataclasses.replace(spec, vision=vision), set()
    for name in RECIPES:
        config = recipe(name, f"model={model},batch_size=2")
        for stage in stage_shapes(fitted(config, vision.layers), shallow):
            if identity(stage.config) not in traced:
                traced.add(identity(stage.config))
                check_shapes(stage)
    assert len(traced) > len(RECIPES)


def check_shapes(stage: StageShapes) -> None:
    """The shapes of loss and gradient are those of a number and of the adapter."""
    frozen = stage.frozen | {STEP: jax.ShapeDtypeStruct((), "int32")}
    gradient = jax.value_and_grad(stage.loss, has_aux=True)
    (loss, parts), grads = jax.eval_shape(gradient, stage.params, frozen, stage.batch, jax.random.key(0))
    assert loss.shape == () and loss.dtype == "float32" and {part.shape for part in parts.values()} == {()}
    assert {"loss", *parts} == {*reported(read_terms(stage.config.objectives))}
    assert shapes(grads) == shapes(stage.params)


def shapes(tree: Params) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in flatten_params(tree).items()}


@pytest.fixture(scope="module")
def model() -> SpatialClip:
    return small_clip()


@pytest.fixture(scope="module")
def trained() -> dict[str, SpatialClip]:
    """Adapters after one step, by `identity`."""
    return {}


# Recipes that are put together of what others have, which is tested with those.
COMBINED = ("r_sc_clipself", "r_sc_region_clip", "r_sc_v")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in COMBINED else ()) for name in RECIPES]
)
def test_one_step_moves_the_adapter_alone(name, model, trained, tmp_path):
    # So few steps have no warm-up, whose first step is of rate 0.
    config = small_config(recipe(name, "steps=3,batch_size=2"), write_pictures(tmp_path / "pictures", 3), 4)
    check_stages(config, model)
    step_through(config, model, trained, tmp_path)


def step_through(config: ConfigDict, model: SpatialClip, trained: dict[str, SpatialClip], folder: Path) -> SpatialClip:
    """One step of every stage that has not been taken before; the model with its adapter."""
    before = earlier_stage(config)
    refiner = step_through(before, model, trained, folder / "refiner") if before else None
    if (key := identity(config)) in trained:
        return trained[key]
    task = task_of(config, model, refiner, folder)
    kept = jax.tree.map(np.array, (task.frozen, task.params))
    state, step = start(config, task, make_mesh({}))
    batch = next(task.batches)
    foretold = stage_shapes(config, model.spec)[-1]
    for made, told in ((task.params, foretold.params), (task.frozen, foretold.frozen), (batch, foretold.batch)):
        assert shapes(shapes_of(made)) == shapes(told)
    state, metrics = step(state, task.frozen, batch)
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["gradient_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, (task.frozen, task.params), kept)
    moved = jax.tree.map(lambda now, then: np.abs(now - then).max(), state.params["blocks"], kept[1]["blocks"])
    assert len(moved) == config.adapter.blocks
    assert all(max(jax.tree.leaves(block)) > 1e-5 for block in moved.values())
    assert ("teacher" in batch) == (folder / "0").exists()
    trained[key] = model.with_adapter(read_section(AdapterSpec, config.adapter, "adapter"), state.params)
    return trained[key]


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("refiner", ConfigDict(dict(batch_size=4)), r"config.refiner has unknown fields \['batch_size'\]"),
        ("teacher", ConfigDict(dict(segmens=(4,))), r"config.teacher has unknown fields \['segmens'\]"),
    ],
)
def test_faults_of_the_last_stage_come_before_the_first_is_trained(model, setting, value, says):
    config = ConfigDict({**recipe("recover").to_dict(), setting: value})
    with pytest.raises(ValueError, match=says):
        check_stages(config, model)


@pytest.mark.parametrize("name", ["region_clip", "r_sc_region_clip"])
def test_other_pictures_are_not_named_by_the_bundled_worlds_nouns(name, model, tmp_path):
    """For every model, the bundled one too; its own pictures need none."""
    for arg in ("model=tiny", "model=clip_b16"):
        config = recipe(name, arg)
        config.data.kind = "folder"
        with pytest.raises(ValueError, match=r"region_text.nouns is empty: .*nouns='\(\"cat\", \"dog\"\)'"):
            read_teaching(config, model.towers if name == "region_clip" else model.new_adapter(ADAPTER, 0)[0])
    config.objectives.region_text.nouns = ("cat", "dog")
    term = read_teaching(config, model.new_adapter(ADAPTER, 0)[0])[0]["region_text"]
    pictures = FolderSource(write_pictures(tmp_path / "pictures", 1))
    assert nouns_of(pictures, term) == ("cat", "dog")
    assert nouns_of(pictures, read_terms(recipe(name).objectives)["region_text"]) == WORLD_NOUNS


def with_boxes(folder: Path, nouns: tuple[str, ...]) -> ConfigDict:
    """A recipe's data section: two pictures with a box each, in COCO's format."""
    images = [dict(id=i, file_name=f"{i}.png", width=32, height=32) for i in range(2)]
    boxes = [dict(image_id=i, bbox=[4, 4, 20, 20], category_id=i) for i in range(2)]
    named = dict(categories=[dict(id=i, name=noun) for i, noun in enumerate(nouns)]) if nouns else {}
    (folder / "boxes.json").write_text(json.dumps(dict(images=images, annotations=boxes, **named)))
    data = recipe("clipself").data
    data.update(kind="folder", path=str(write_pictures(folder / "pictures", 2)), boxes=str(folder / "boxes.json"))
    return data


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("clipself", dict(region_alignment=dict(boxes="given", max_boxes=3, context=1.5))),
        ("region_clip", dict(region_text=dict(boxes="given", labels="given", max_boxes=3))),
        ("sc_clipself", dict(spatial_correlation=dict(teacher="value", regions="given", max_boxes=2))),
    ],
)
def test_recipes_take_the_pictures_own_boxes(name, term, model, tmp_path):
    """A step with the boxes of a file is another than one without them."""
    config = recipe(name, "steps=3,batch_size=2")
    config.data, config.objectives, config.adapter.blocks = with_boxes(tmp_path, ("cat", "dog")), ConfigDict(term), 2
    task = task_of(config, model, None, tmp_path / "maps")
    batch = next(task.batches)
    assert batch["boxes"].shape == (2, next(iter(term.values()))["max_boxes"], 4) and batch["valid"].sum() == 2
    loss = jax.jit(task.loss_fn)
    taught = loss(task.params, task.frozen, batch, jax.random.key(0))[0]
    nothing = loss(task.params, task.frozen, {**batch, "valid": np.zeros_like(batch["valid"])}, jax.random.key(0))[0]
    assert np.isfinite(taught) and taught > 1e-4 and nothing == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clipself", ("objectives.region_alignment.boxes=given", "objectives.region_alignment.context=1.5")),
        ("region_clip", ("objectives.region_text.boxes=given", "objectives.region_text.labels=given")),
    ],
)
def test_the_recipes_notes_on_boxes_can_be_given(name, options, model, monkeypatch):
    """What their docstrings say is in the config, so that the command line takes it."""
    notes = importlib.import_module(f"configs.adapt.{name}").__doc__
    written = [f"--config.{option}" for option in options]
    assert all(option in notes for option in written)
    line = ["program", *written, "--config.data.boxes=boxes.json", "--config.data.kind=folder"]
    monkeypatch.setattr(sys, "argv", line)
    flags = FlagValues()
    config_flags.DEFINE_config_dict("config", recipe(name), flag_values=flags)
    flags(line)
    assert read_teaching(flags.config, model.towers)


def test_boxes_that_are_not_there_are_asked_for(model, tmp_path):
    config = recipe("clipself")
    config.objectives.region_alignment.boxes = "given"
    for kind in ("scenes", "folder"):
        config.data.kind = kind
        with pytest.raises(ValueError, match="name them by config.data.boxes, of a folder a file in COCO's format"):
            read_teaching(config, model.towers)
    config.data.update(kind="scenes", boxes="boxes.json")
    with pytest.raises(ValueError, match="config.data.boxes and nouns are of your own pictures"):
        read_teaching(config, model.towers)
    named = recipe("region_clip", "steps=3,batch_size=2")
    named.data, named.adapter.blocks = with_boxes(tmp_path, ()), 2
    named.objectives.region_text.update(boxes="given", labels="given")
    with pytest.raises(ValueError, match="the boxes of config.data.boxes have no names"):
        check_stages(named, model)


def test_nouns_come_from_the_command_line(monkeypatch):
    option = """--config.objectives.region_text.nouns=("a cat", "dog")"""
    monkeypatch.setattr(sys, "argv", ["program", option])
    flags = FlagValues()
    config_flags.DEFINE_config_dict("config", recipe("region_clip"), flag_values=flags)
    flags(["program", option])
    assert read_terms(flags.config.objectives)["region_text"].nouns == ("a cat", "dog")
    with pytest.raises(ValueError, match="nouns must be a tuple of phrases"):
        read_terms(ConfigDict({"region_text": {"nouns": ("cat", " ")}}))


def test_logits_are_the_models_own_unless_the_config_says_otherwise(model, tmp_path):
    """RegionCLIP's sigmoids are of the cosines times exp(logit_scale), plus the bias of a CLIP that has one."""
    pictures = write_pictures(tmp_path / "pictures", 2)
    params = model.clip_params | {"logit_scale": np.log(41.0)}
    plain = SpatialClip(model.spec, params, TINY / "tokenizer.json")
    biased = SpatialClip(model.spec, params | {"logit_bias": -3.0}, TINY / "tokenizer.json")

    def value(clip: SpatialClip, **changes: float) -> float:
        config = small_config(recipe("region_clip", "steps=3,batch_size=2"), pictures, 4)
        config.objectives.region_text = config.objectives.region_text.to_dict() | changes
        task = task_of(config, clip, None, tmp_path)
        loss, _ = jax.jit(task.loss_fn)(task.params, task.frozen, next(task.batches), jax.random.key(0))
        return float(loss)

    own, with_bias = value(plain), value(biased)
    assert own == pytest.approx(value(model, logit_scale=41.0), rel=1e-5)
    assert with_bias == pytest.approx(value(model, logit_scale=41.0, logit_bias=-3.0), rel=1e-5)
    assert abs(own - value(model)) > 1e-3 and abs(with_bias - own) > 1e-3


def test_windows_pooled_by_the_average_are_not_kept(model, tmp_path):
    """They are other ones at every step; and there must be an average."""
    config = small_config(recipe("spar", "steps=3,batch_size=2"), write_pictures(tmp_path / "pictures", 3), 4)
    config.teacher.update(rule="affinity", readout="average")
    with pytest.raises(ValueError, match="needs config.optimizer.average"):
        check_stages(config, model)
    config.optimizer.average = 0.9
    with pytest.raises(ValueError, match="cannot be kept; give cache_teacher=False"):
        check_stages(config, model)
    config.cache_teacher = False
    check_stages(config, model)
    step_through(config, model, {}, tmp_path)
    # Where nothing asks for fused views, nothing is kept, and the teacher's section does not count.
    config.cache_teacher, config.optimizer.average = True, 0.0
    config.objectives = dict(spatial_correlation=dict(teacher="maskclip"))
    check_stages(config, model)


@pytest.mark.parametrize("name", ["recover", "spar"])
def test_a_recipe_does_without_the_stage_before(name, model, monkeypatch):
    """As docs/training.md says; of a recipe that has none it changes nothing."""
    taught = ["teacher.readout=maskclip", "objectives.spatial_correlation.teacher=fusion"] if name == "recover" else []
    line = ["program", *(f"--config.{option}" for option in ("refiner={}", *taught))]
    notes = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert all(option in notes for option in line[1:])
    monkeypatch.setattr(sys, "argv", line)
    flags = FlagValues()
    config_flags.DEFINE_config_dict("config", recipe(name), flag_values=flags)
    flags(line)
    check_stages(flags.config, model)
    assert earlier_stage(flags.config) is None and len(stage_shapes(flags.config, model.spec)) == 1
    assert name == "recover" or resolve(flags.config) == resolve(recipe(name))


def test_a_stages_sections_are_its_own():
    """What is set of one stage, or of the training alone, changes nothing else."""
    config = recipe("recover")
    before = resolve(config)
    config.adapter.blocks, config.teacher.temperature, config.objectives.spatial_correlation.weight = 1, 9.0, 9.0
    after = resolve(config)
    assert after["refiner"] == before["refiner"] and after["benchmark"] == before["benchmark"]
    assert earlier_stage(config).adapter.blocks == 3 and earlier_stage(config).teacher.temperature != 9.0


def test_a_stage_before_draws_its_own_and_starts_from_the_tower():
    config = recipe("recover", "seed=3")
    config.start = "refiner"
    before = earlier_stage(config)
    assert before.start == "tower" and before.seed == earlier_stage(config).seed
    others = {recipe("recover", f"seed={seed}").seed for seed in range(100)}
    assert before.seed not in others and before.seed != earlier_stage(recipe("recover", "seed=4")).seed


@pytest.mark.parametrize("comparison", [recipes, ablations])
def test_all_that_a_shipped_comparison_trains_can_be_trained(comparison):
    tiny = load("tiny")
    for config in read_variations(comparison.get_config()).configs.values():
        check_stages(config, tiny)


def test_no_steps_are_no_default():
    assert recipe("clipself", "steps=0").steps == 0 != recipe("clipself").steps
    for budget in ("steps=0", "steps=1", "batch_size=-1"):  # of one step the first of two stages has none
        with pytest.raises(ValueError, match=r"the budget of recover, .* is none: config.* must be at least 1"):
            read_plan(ablations.get_config(budget), Path())


def test_what_only_the_tower_can_tell_is_refused_before_any_step(model):
    config = fitted(recipe("unirefiner", "steps=2,batch_size=2"), 4)
    stage_shapes(config, model.spec)[-1].check()
    config.objectives.registers.attention_layers = (4,)
    with pytest.raises(ValueError, match=r"config.objectives \['registers'\]: .*attention_layers=\(4,\).* are 0 to 3"):
        stage_shapes(config, model.spec)[-1].check()


def test_an_adapter_that_is_not_measured_is_used_at_the_size_it_was_trained_at(model, tmp_path):
    config = small_config(recipe("spar", "steps=1,batch_size=2"), write_pictures(tmp_path / "pictures", 2), 4)
    adapted, _ = _adapted(config, model, tmp_path / "run", None)
    assert adapted.settings.scale == config.scale == 2.0 != model.settings.scale
