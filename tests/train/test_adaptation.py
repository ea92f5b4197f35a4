"""The adaptation loss: only the adapter moves, every term counts by its weight, mirrored pictures keep their maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from spatial_clip_jax.data.reference_picture import reference_picture
from spatial_clip_jax.data.views import random_boxes
from spatial_clip_jax.fusion.encoders import ADAPTER, Towers, dense_maps, fused_maps, read_pixels
from spatial_clip_jax.fusion.roi import roi_align
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.params import flatten_params, init_module, join_params, split_params
from spatial_clip_jax.models.spec import AdapterSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower
from spatial_clip_jax.objectives.confidence import agreement
from spatial_clip_jax.objectives.fusion_distillation import fusion_distillation
from spatial_clip_jax.objectives.refinement import refinement
from spatial_clip_jax.objectives.region_alignment import region_alignment
from spatial_clip_jax.objectives.region_text import region_text
from spatial_clip_jax.objectives.registers import TeacherTokens, registers
from spatial_clip_jax.train.adaptation import _mirrored, adaptation_loss
from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.settings import OptimizerSettings
from spatial_clip_jax.train.sharding import make_mesh, match_rules, state_shardings
from spatial_clip_jax.train.state import new_state
from spatial_clip_jax.train.step import make_train_step
from spatial_clip_jax.train.terms import TERMS as TERMS_BY_NAME
from spatial_clip_jax.train.terms import read_terms
from spatial_clip_jax.train.views import StepViews, Teachers

SPEC = VisionSpec(image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=32)
FUSION = FusionSettings(windows=((1.0, 0.5),))
VIEW_KEY = jax.random.split(jax.random.key(0))[1]  # what a loss with key 0 gives to its views
TERMS = {"fusion_distillation": {"weight": 1.0}, "region_alignment": {"weight": 0.1, "max_boxes": 4}}


@pytest.fixture(scope="module")
def setting():
    tower = init_module(lambda rngs: VisionTower(SPEC, 8, rngs=rngs), 0)
    adapter = init_module(lambda rngs: SpatialAdapter(AdapterSpec("copy", 1), tower, rngs=rngs), 1)
    vision, frozen = split_params(tower)
    definition, params = split_params(adapter)
    refiner = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(3), leaf.shape), params)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    teacher = dense_maps(Towers(SPEC, vision), {"vision": frozen}, images, "clearclip")
    towers = Towers(SPEC, vision, definition)
    return towers, params, {"vision": frozen, "refiner": refiner}, {"image": jnp.asarray(images), "teacher": teacher}


def value(setting, terms=TERMS, batch=None, fusion=FUSION):
    towers, params, frozen, given = setting
    loss = jax.jit(adaptation_loss(towers, Teachers(towers, fusion), read_terms(ConfigDict(terms)), True))
    return loss(params, frozen, given if batch is None else batch, jax.random.key(0))


def test_weights_scale_their_terms(setting):
    names = ("fusion_distillation", "region_alignment", "spatial_correlation")
    alone = {name: float(value(setting, {name: {"weight": 1.0}})[0]) for name in names}
    weights = dict(zip(names, (2.0, 0.5, 0.25), strict=True))
    total, parts = value(setting, {name: {"weight": weight} for name, weight in weights.items()})
    assert float(total) == pytest.approx(sum(weights[name] * alone[name] for name in names), rel=1e-5)
    assert all(term > 0 for term in alone.values())
    assert {"cosine", "region_cosine", "correlation_divergence"} <= set(parts)
    assert "region_cosine" not in value(setting, {**TERMS, "region_alignment": {"weight": 0.0}})[1]


def test_tokens_count_by_the_teachers_confidence(setting):
    """The term is the objective with the weights of the teacher's own map."""
    towers, params, frozen, batch = setting
    terms = {"fusion_distillation": {"confidence": "agreement"}}
    loss = adaptation_loss(towers, Teachers(towers, FUSION), read_terms(ConfigDict(terms)), False)
    views = StepViews(towers, Teachers(towers, FUSION), params, frozen, {"image": batch["image"]}, jax.random.key(0))
    teacher = batch["teacher"]
    expected, _ = fusion_distillation(views.student, teacher, confidence=agreement(teacher))
    found = float(loss(params, frozen, batch, jax.random.key(0))[0])
    assert found == pytest.approx(float(expected), rel=1e-4)
    assert abs(found - float(fusion_distillation(views.student, teacher)[0])) > 1e-3


@pytest.mark.parametrize("settings", [{"teacher_temperature": 0.1}, {"temperature": 0.1}])
def test_temperatures_reach_the_correlations(setting, settings):
    by = {"spatial_correlation": {"teacher": "maskclip"} | settings}
    plain = {"spatial_correlation": {"teacher": "maskclip"}}
    assert abs(float(value(setting, by)[0]) - float(value(setting, plain)[0])) > 1e-2


def test_no_two_terms_report_by_the_same_name(setting):
    """All of them side by side; and a term that takes another's name is refused when the loss is traced."""
    towers, params, frozen, batch = setting
    frozen = frozen | {"average": params, "nouns": jnp.eye(8), "logit_scale": 9.0, "logit_bias": 0.0}
    given = {name: {} for name in TERMS_BY_NAME if name != "registers"} | {"refinement": {"crops": 1}}
    parts = value((towers, params, frozen, batch), given)[1]
    assert {"aligned_regions", "named_regions", "refinement_cosine"} <= set(parts)
    assert not parts.keys() & register_parts()
    terms = read_terms(ConfigDict(TERMS))
    loss = adaptation_loss(towers, Teachers(towers, FUSION), {**terms, "again": terms["region_alignment"]}, True)
    with pytest.raises(ValueError, match=r"'again' reports \['aligned_regions', 'region_cosine'\]"):
        jax.eval_shape(loss, params, frozen, batch, jax.random.key(0))


def test_the_refiners_teacher_may_see_crops_beside_an_unrelated_picture(setting):
    """The crop's tokens of the composite alone are targets; without a background it is the crop that is seen."""
    towers, params, frozen, batch = setting
    views = StepViews(towers, Teachers(towers, FUSION), params, frozen, {"image": batch["image"]}, VIEW_KEY)
    boxes = random_boxes(views.key("random boxes"), 3, 2)
    pictures = np.asarray(batch["image"], np.float32)
    crops = np.round(np.asarray(roi_align(jnp.asarray(pictures), boxes, 16)).clip(0, 255)).reshape(6, 16, 16, 3)
    reference = np.broadcast_to(reference_picture(16, 16), crops.shape)
    seen = {  # the strip is two tokens wide, as the crop is
        "none": (crops, np.s_[:, :, :]),
        "left": (np.concatenate([reference, crops], 2), np.s_[:, :, 2:]),
        "right": (np.concatenate([crops, reference], 2), np.s_[:, :, :2]),
        "top": (np.concatenate([reference, crops], 1), np.s_[:, 2:]),
        "bottom": (np.concatenate([crops, reference], 1), np.s_[:, :2]),
    }
    expected = {}
    for where, (composed, part) in seen.items():
        maps = dense_maps(towers, {"vision": frozen["vision"]}, jnp.asarray(composed, jnp.uint8), "value")[part]
        expected[where] = float(refinement(views.student, boxes, maps.reshape(3, 2, 2, 2, 8))[0])

    def found(**changes):
        terms = read_terms(ConfigDict({"refinement": {"crops": 2} | changes}))
        loss = jax.jit(adaptation_loss(towers, Teachers(towers, FUSION), terms, False))
        return float(loss(params, frozen, batch, jax.random.key(0))[0])

    plain, composed = found(), found(background="composed")
    assert plain == found(background="none") == pytest.approx(expected.pop("none"), rel=1e-5)
    matching = [where for where, value in expected.items() if value == pytest.approx(composed, rel=1e-5)]
    assert len(matching) == 1 and abs(composed - plain) > 1e-3


def register_parts():
    """What UniRefiner's objective reports."""
    tokens = jnp.ones((1, 1, 2, 2, 4))
    teacher = TeacherTokens(tokens, tokens.reshape(1, 1, 4, 4), tokens[0], tokens.reshape(4, 4), None)
    boxes = jnp.array([[[0.0, 0.0, 1.0, 1.0]]])
    shapes = jax.eval_shape(registers, tokens[0], tokens.reshape(1, 4, 4), boxes, teacher, jax.random.key(0))
    return shapes[1].keys() | {"register_correlation"}


def test_without_teacher_maps_the_step_fuses_them_itself(setting):
    alone = float(value(setting, batch={"image": setting[3]["image"]})[0])
    assert np.isfinite(alone) and alone != float(value(setting)[0])


def test_every_teacher_is_another(setting):
    """The same term, taught by each: the refiner, the average, a read-out, and views fused by the refiner."""
    towers, params, frozen, batch = setting
    setting = (towers, params, {**frozen, "average": jax.tree.map(lambda leaf: leaf * 1.1, params)}, batch)
    names = ("fusion", "refiner", "average", "maskclip")
    losses = [float(value(setting, {"spatial_correlation": {"teacher": name}})[0]) for name in names]
    fused = {"image": batch["image"]}
    for readout in ("refiner", "maskclip"):
        by = FusionSettings(windows=((1.0, 0.5),), readout=readout)
        losses.append(float(value(setting, batch=fused, fusion=by)[0]))
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("rule", ["affinity", "overlap_add"])
def test_windows_are_pooled_by_the_students_average(setting, rule):
    """Just as if the averaged adapter were the towers' own; neither the student of this step nor the refiner pools."""
    towers, params, frozen, batch = setting
    average = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(4), leaf.shape), params)
    fusion = FusionSettings(rule=rule, windows=((1.0, 0.5),), readout="average")
    frozen_only = Teachers(Towers(SPEC, towers.vision), fusion)
    frozen_only.check_fusion()

    def pooled_by(adapter):
        given = {"vision": frozen["vision"], "adapter": adapter}
        return fused_maps(towers, given, batch["image"], FusionSettings(rule, "adapter", fusion.windows))

    given = {**frozen, "average": average}
    views = StepViews(towers, frozen_only, params, given, {"image": batch["image"]}, jax.random.key(0))
    np.testing.assert_allclose(views.teacher("fusion"), pooled_by(average), atol=1e-6)
    for other in (params, frozen["refiner"]):
        assert np.abs(views.teacher("fusion") - pooled_by(other)).max() > 1e-2


def test_the_student_as_its_own_teacher_has_no_gradient_in_its_correlations(setting):
    """With equal maps SCD is at its least, whatever the maps; as the refiner's its gradient is not null."""
    towers, params, frozen, batch = setting

    def gradient(teacher):
        terms = read_terms(ConfigDict({"spatial_correlation": {"teacher": teacher}}))
        loss = adaptation_loss(towers, Teachers(towers, FUSION), terms, True)
        given = {**frozen, "average": params}
        grads = jax.jit(jax.grad(lambda p: loss(p, given, batch, jax.random.key(0))[0]))(params)
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))

    assert gradient("average") < 1e-5 < 1e-3 < gradient("refiner")


def test_no_gradient_flows_through_views_fused_by_the_student_itself(setting):
    """Even where the refiner is the very student: masked views are a teacher's, whoever cuts them."""
    towers, params, frozen, batch = setting
    fusion = FusionSettings(rule="none", readout="refiner", windows=(), segments=(2,))

    def gradient(read):
        def total(params):
            given = {**frozen, "refiner": params}
            views = StepViews(
                towers, Teachers(towers, fusion), params, given, {"image": batch["image"]}, jax.random.key(0)
            )
            return (read(views) * batch["teacher"]).sum()

        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params)))

    assert gradient(lambda views: views.teacher("fusion")) == 0
    assert gradient(lambda views: views.taught("fusion", views.images)) > 1e-3


def test_every_adapter_leaf_has_a_gradient(setting):
    towers, params, frozen, batch = setting
    loss = adaptation_loss(towers, Teachers(towers, FUSION), read_terms(ConfigDict(TERMS)), True)
    gradient = jax.jit(jax.grad(lambda p: loss(p, frozen, batch, jax.random.key(0))[0]))(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


def test_steps_of_low_rank_within_a_ring_move_the_factors_alone(setting):
    towers, _, frozen, batch = setting
    tower = join_params(towers.vision, frozen["vision"])
    spec = AdapterSpec("lora", 2, rank=2, ring=1)
    adapter = init_module(lambda rngs: SpatialAdapter(spec, tower, rngs=rngs), 1)
    definition, start = split_params(adapter)
    kept = jax.tree.map(np.array, (frozen, start))
    optimizer = make_optimizer(OptimizerSettings(1e-2, schedule="constant", layer_decay=0.5, average=0.5), 10)
    state, mesh = new_state(start, optimizer), make_mesh({})
    places = match_rules({"params": start}, [(".*", "replicate")], mesh)["params"]
    with_lora = Towers(SPEC, towers.vision, definition)

    def loss(params, frozen, batch, key):
        maps = read_pixels(with_lora, {**frozen, "adapter": params}, batch["image"].astype(jnp.float32) / 255, ADAPTER)
        return jnp.mean(maps * batch["teacher"]), {}

    step = make_train_step(loss, optimizer, state_shardings(state, places, mesh), 0)
    for _ in range(3):
        state, _ = step(state, frozen, batch)
    jax.tree.map(np.testing.assert_array_equal, frozen, kept[0])
    moved = flatten_params(jax.tree.map(lambda now, then: float(np.abs(now - then).max()), state.params, kept[1]))
    assert len(moved) == 2 * 2 * 6 and {path[-2:] for path in moved} == {"/a", "/b"}
    # The last block's queries and keys too, since its read-out is plain; every factor b moved first, then every a.
    assert min(moved.values()) > 1e-3


def test_mirrored_pictures_keep_their_maps_and_boxes():
    images = jnp.arange(8 * 4, dtype=jnp.uint8).reshape(8, 1, 4, 1) * jnp.ones((1, 1, 1, 3), jnp.uint8)
    maps = images[..., :1].astype(jnp.float32)
    first = jnp.tile(jnp.array([0.0, 0.0, 0.25, 1.0]), (8, 2, 1))
    batch = {"image": images, "teacher": maps, "boxes": first, "labels": jnp.arange(8)}
    mirrored = _mirrored(jax.random.key(1), batch)
    flipped = mirrored["image"]
    np.testing.assert_array_equal(flipped[..., :1].astype(np.float32), mirrored["teacher"])
    changed = [not np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert any(changed) and not all(changed)
    for picture, boxes, plain in zip(flipped, mirrored["boxes"], images, strict=True):
        x0, y0, x1, y1 = boxes[1]
        assert (y0, y1) == (0, 1) and x1 - x0 == 0.25
        assert picture[0, round(float(x0) * 4), 0] == plain[0, 0, 0]
    np.testing.assert_array_equal(mirrored["labels"], batch["labels"])


BOXES = np.array([[[0, 0, 0.5, 0.5], [0.4, 0.2, 0.9, 0.8]], [[0, 0, 1, 1], [0.1, 0.1, 0.6, 0.6]], [[0, 0, 1, 1]] * 2])
GIVEN = {
    "boxes": jnp.asarray(BOXES, jnp.float32),
    "valid": jnp.array([[1, 1], [0, 1], [0, 0]], bool),
    "labels": jnp.array([[2, 0], [0, 1], [0, 0]]),
}


def test_given_boxes_are_aligned_with_wider_crops(setting):
    """The term is the objective of the batch's boxes and the tower's view of what lies half as wide again."""
    towers, params, frozen, batch = setting
    teachers = Teachers(towers, FUSION)
    terms = read_terms(ConfigDict({"region_alignment": {"boxes": "given", "max_boxes": 2, "context": 1.5}}))
    seen = {"image": batch["image"], **GIVEN}
    views = StepViews(towers, teachers, params, frozen, seen, VIEW_KEY)

    def expected(crops):
        return float(
            region_alignment(views.student, GIVEN["boxes"], GIVEN["valid"], views.crops(jnp.float32(crops)))[0]
        )

    wide = BOXES.copy()
    wide[0] = [[0, 0, 0.625, 0.625], [0.275, 0.05, 1, 0.95]]
    wide[1, 1] = [0, 0, 0.725, 0.725]
    found = float(adaptation_loss(towers, teachers, terms, False)(params, frozen, seen, jax.random.key(0))[0])
    assert found == pytest.approx(expected(wide), abs=1e-5)
    assert abs(found - expected(BOXES)) > 1e-3


def test_given_names_label_given_boxes(setting):
    towers, params, frozen, batch = setting
    teachers, seen = Teachers(towers, FUSION), {"image": batch["image"], **GIVEN}
    text = jax.random.normal(jax.random.key(5), (4, 8))
    named = {**frozen, "nouns": text, "logit_scale": jnp.float32(10.0), "logit_bias": jnp.float32(0.0)}
    terms = read_terms(ConfigDict({"region_text": {"boxes": "given", "labels": "given", "max_boxes": 2}}))
    views = StepViews(towers, teachers, params, named, seen, VIEW_KEY)

    def expected(labels):
        key = views.key("nouns")
        return float(region_text(views.student, GIVEN["boxes"], GIVEN["valid"], labels, text, key, logit_scale=10.0)[0])

    found = float(adaptation_loss(towers, teachers, terms, False)(params, named, seen, jax.random.key(0))[0])
    assert found == pytest.approx(expected(GIVEN["labels"]), rel=1e-5)
    assert abs(found - expected(jnp.roll(GIVEN["labels"], 1, 1))) > 1e-3


def test_crops_of_the_whole_picture_are_the_picture(setting):
    towers, params, frozen, batch = setting
    views = StepViews(towers, Teachers(towers, FUSION), params, frozen, {"image": batch["image"]}, jax.random.key(0))
    whole = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (3, 1, 1))
    left = jnp.tile(jnp.array([0.0, 0.0, 0.5, 0.5]), (3, 1, 1))
    embedded = views.crops(jnp.concatenate([whole, left], 1))
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=-1), 1, atol=1e-5)
    assert not np.allclose(embedded[:, 0], embedded[:, 1])


def test_an_unknown_teacher_is_named(setting):
    with pytest.raises(ValueError, match="unknown teacher 'refinar'; valid: fusion, average, refiner"):
        value(setting, {"spatial_correlation": {"teacher": "refinar"}})
