"""The public API on the bundled model: what a user calls, with the pictures users have."""

import functools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

import spatial_clip_jax as scj
from spatial_clip_jax.api import TINY, SpatialClip
from spatial_clip_jax.convert.load import read_checkpoint
from spatial_clip_jax.fusion.settings import FusionSettings

TEXTS = ["a photo of a red circle", "a blue house with a white door", "nothing"]
TOLERANCE = 1e-5


def test_embeddings_equal_transformers(model, picture):
    theirs = CLIPModel.from_pretrained(TINY).eval()
    native = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC))
    mean, std = np.array(model.spec.vision.mean), np.array(model.spec.vision.std)
    pixels = torch.tensor(((native / 255 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
    ids = torch.tensor([model.tokenizer.encode(text).ids for text in TEXTS[:1]])
    with torch.no_grad():
        output = theirs(pixel_values=pixels, input_ids=ids)
    np.testing.assert_allclose(model.encode_image(native), output.image_embeds, atol=TOLERANCE)
    np.testing.assert_allclose(model.encode_text(TEXTS[:1]), output.text_embeds, atol=TOLERANCE)
    logits = np.exp(float(model.clip_params["logit_scale"])) * np.asarray(
        model.encode_image(native) @ model.encode_text(TEXTS[:1]).T
    )
    np.testing.assert_allclose(logits, output.logits_per_image, atol=1e-4)


def test_classification_is_unchanged_by_an_adapter(model, adapted, picture):
    np.testing.assert_array_equal(model.classify(picture, TEXTS), adapted.classify(picture, TEXTS))
    assert not np.allclose(model.dense(picture, "clearclip"), adapted.dense(picture))


def test_text_embeddings_do_not_depend_on_their_company(model):
    alone = np.concatenate([model.encode_text([text]) for text in TEXTS])
    np.testing.assert_allclose(model.encode_text(TEXTS), alone, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (90, 40), (17, 300)])
def test_any_size_and_aspect(model, shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    dense = np.asarray(model.dense(picture, "plain"))
    assert min(dense.shape[1:3]) == 8 and dense.shape[0] == 1
    assert abs(dense.shape[1] / dense.shape[2] - shape[0] / shape[1]) < 0.15 * shape[0] / shape[1]
    np.testing.assert_allclose(np.linalg.norm(dense, axis=-1), 1, atol=1e-5)
    found = model.localize(picture, ["a red circle"])[0]
    assert found.heatmap.shape == shape and (found.boxes[:, 2] <= shape[1]).all() and len(found.boxes)
    assert model.segment(picture, TEXTS).labels.shape == shape


def test_resolutions_of_the_global_embedding(model, picture):
    square = picture[:64, :64]
    np.testing.assert_array_equal(model.encode_image(square), model.encode_image(square, resolution="keep"))
    keep = model.encode_image(picture, resolution="keep")
    np.testing.assert_allclose(
        keep, model.encode_image(np.asarray(Image.fromarray(picture).resize((96, 72))), "keep"), atol=0.2
    )
    assert not np.allclose(keep, model.encode_image(picture))


def test_arrays_images_and_paths_are_one(model, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = model.dense(picture)
    for same in (Image.fromarray(picture), tmp_path / "picture.png", str(tmp_path / "picture.png"), [picture]):
        np.testing.assert_array_equal(model.dense(same), expected)
    assert model.dense(np.stack([picture, picture])).shape[0] == 2


def test_odd_pictures(model, picture):
    gray = Image.fromarray(picture).convert("L")
    for odd in (
        gray,
        gray.convert("CMYK"),
        Image.fromarray(picture).convert("RGBA"),
        np.asarray(gray).astype(np.uint16) * 256,
    ):
        assert np.isfinite(model.encode_image(odd)).all()


def test_scales_and_fusion_keep_unit_length(model, adapted, picture):
    for maps in (
        model.dense(picture, "clearclip", scales=(1.0, 1.5)),
        model.dense(picture, scales=(1.5,), fusion=FusionSettings()),
        adapted.dense(picture, scales=(1.0,), fusion=FusionSettings(rule="overlap_add", readout="adapter")),
    ):
        np.testing.assert_allclose(np.linalg.norm(maps, axis=-1), 1, atol=1e-5)


def test_windows_are_the_fusion_as_it_is(model, picture):
    windows = model.dense(picture, "windows")
    np.testing.assert_array_equal(windows, model.dense(picture, fusion=FusionSettings()))
    assert np.abs(windows - model.dense(picture, FusionSettings().readout)).max() > 0.05


def test_tasks_answer(adapted, picture):
    opposite = {"left of": "right of", "above": "below", "inside": "around"}
    for relation, other in opposite.items():
        answers = [adapted.relate(picture, "a red circle", r, "a blue square").probability for r in (relation, other)]
        assert sum(answers) == pytest.approx(1)
    found = adapted.ground(picture, "the red door of the white house")
    assert found.heatmap.max() == pytest.approx(1) and found.heatmap[int(found.point[1]), int(found.point[0])] == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, p: m.dense(p, "nonsense"), "unknown read-out 'nonsense'.*plain.*of many passes, 'windows'"),
        (lambda m, p: m.dense(p, "adapter"), "adapter=FOLDER"),
        (lambda m, p: m.dense([p, p[:, :30]]), "one size"),
        (lambda m, p: m.dense(p, scales=(0,)), "positive"),
        (lambda m, p: m.encode_text("one text"), "list of texts"),
        (lambda m, p: m.localize(p, []), "list of texts"),
        (lambda m, p: m.encode_image(p, resolution="huge"), "'native' or 'keep'"),
        (lambda m, p: m.relate(p, "a", "beside of", "b"), "unknown relation.*left of"),
        (lambda m, p: m.encode_image(p.astype(np.float32)), "uint8"),
        (lambda m, p: scj.load("tiny", adapter=TINY), "no adapter in"),
        (lambda m, p: scj.load("no/such/model"), "no checkpoint at 'no/such/model'"),
    ],
)
def test_errors_say_what_to_do(model, picture, call, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        call(model, picture)


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "wrong", [None, 5, 2.0, b"bytes", [1, 2], (1.0, 2.0), [None], [[1, 2]], {}, Image.new("RGB", (0, 0)), []]
)
def test_what_is_no_picture_is_refused(unchecked, model, wrong):
    for ask in (model.encode_image, model.dense, lambda w: model.localize(w, ["a house"])):
        with pytest.raises(ValueError, match="a picture is|0 x 0 pixels|no picture"):
            ask(wrong)


def test_jax_arrays_are_pictures(model, picture):
    expected = model.encode_image(picture)
    np.testing.assert_array_equal(model.encode_image(jnp.asarray(picture)), expected)
    np.testing.assert_array_equal(model.encode_image(jnp.asarray(picture[None])), expected)


@pytest.mark.parametrize("wrong", [None, [None], [1], [], "red", b"red", [b"red"], (x for x in ["red"]), {"red": 1}])
def test_what_is_no_list_of_texts_is_refused(unchecked, model, picture, wrong):
    tasks = (model.localize, model.segment, model.classify)
    for ask in (model.encode_text, *[functools.partial(task, picture) for task in tasks]):
        with pytest.raises(ValueError, match="expected a list of texts"):
            ask(wrong)


@pytest.mark.parametrize(
    ("wrong", "says"), [("", "blank"), (" \t\n", "blank"), ("red \ud800", "surrogate"), (None, "text")]
)
def test_phrases_name_something(unchecked, model, picture, wrong, says):
    questions = (
        lambda: model.localize(picture, ["a house", wrong]),
        lambda: model.segment(picture, [wrong]),
        lambda: model.classify(picture, [wrong]),
        lambda: model.ground(picture, wrong),
        lambda: model.relate(picture, wrong, "above", "a house"),
    )
    for ask in questions:
        with pytest.raises(ValueError, match=says):
            ask()


def test_texts_may_be_blank(model):
    """The benchmark subtracts the empty text, as CLIP Surgery does."""
    assert model.encode_text([""]).shape == (1, 128)


@pytest.mark.parametrize("scales", [2.0, None, "2", ["1"], [], [INFINITE], [NAN], [1e300], [-1], [True], [101]])
def test_scales_are_a_list_of_positive_numbers(unchecked, model, picture, scales):
    with pytest.raises(ValueError, match="scales must be a list of positive numbers"):
        model.dense(picture, scales=scales)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"readout": ""}, "unknown read-out ''"),
        ({"readout": 5}, "unknown read-out 5"),
        ({"readout": ["plain"]}, "unknown read-out .*plain"),
        ({"fusion": {"rule": "affinity"}}, "fusion must be FusionSettings"),
        ({"fusion": True}, "fusion must be FusionSettings"),
        ({"fusion": FusionSettings(readout="nonsense")}, "unknown read-out 'nonsense'"),
        ({"fusion": FusionSettings(), "readout": "plain"}, "given without readout="),
        ({"fusion": FusionSettings(), "readout": "windows"}, "given without readout="),
    ],
)
def test_readout_and_fusion_are_known(unchecked, model, picture, options, says):
    with pytest.raises(ValueError, match=says):
        model.dense(picture, **options)


@pytest.mark.parametrize("wrong", [None, 5, "", b"tiny"])
def test_load_takes_paths(unchecked, wrong):
    for options in ({"source": wrong}, *[{name: wrong} for name in ("tokenizer", "adapter") if wrong is not None]):
        with pytest.raises(ValueError, match="must be the path of a file or folder"):
            scj.load(**options)
    with pytest.raises(ValueError, match="spec must be a ClipSpec"):
        scj.load(spec=5)


def test_relations_are_words(unchecked, model, picture):
    with pytest.raises(ValueError, match="unknown relation None"):
        model.relate(picture, "a house", None, "a circle")


def test_long_strips_are_refused_before_memory_runs_out(model):
    strip = np.zeros((20, 3000, 3), np.uint8)
    with pytest.raises(ValueError, match="128 x 19200 .*38400 tokens, more than 8192: use a smaller scale"):
        model.dense(strip, scales=(2.0,))
    with pytest.raises(ValueError, match="1024 x 1024 .*16384 tokens, more than 8192"):
        model.encode_image(np.zeros((1024, 1024, 3), np.uint8), resolution="keep")


@pytest.mark.parametrize("field", ["eos_token_id", "bos_token_id"])
def test_a_tokenizer_of_another_model_is_refused(tmp_path, field):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"][field] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"tokenizer.json is not this text tower's: {field} 5 is "):
        scj.load(tmp_path)
    spec, params, _ = read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="tokenizer.json is not this text tower's"):
        SpatialClip(spec, params, TINY / "tokenizer.json")
