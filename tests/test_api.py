"""The public API on the bundled model: what a user calls, with the pictures users have."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

import spatial_clip_jax as scj
from spatial_clip_jax.api import TINY
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.spec import AdapterSpec

TEXTS = ["a photo of a red circle", "a blue house with a white door", "nothing"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model():
    return scj.load("tiny")


@pytest.fixture(scope="module")
def adapted(model):
    """An adapter moved away from its start, so that it differs from the tower's own read-out."""
    spec = AdapterSpec("copy", 2, "clearclip")
    _, params = model.new_adapter(spec, seed=0)
    rng = np.random.default_rng(0)

    def moved(tree):
        if isinstance(tree, dict):
            return {name: moved(leaf) for name, leaf in tree.items()}
        return np.asarray(tree) + rng.normal(scale=0.02, size=tree.shape).astype(np.float32)

    return model.with_adapter(spec, moved(params))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (72, 100, 3), np.uint8)


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


def test_tasks_answer(adapted, picture):
    opposite = {"left of": "right of", "above": "below", "inside": "around"}
    for relation, other in opposite.items():
        answers = [adapted.relate(picture, "a red circle", r, "a blue square").probability for r in (relation, other)]
        assert sum(answers) == pytest.approx(1)
    found = adapted.ground(picture, "the red door of the white house")
    assert found.heatmap.max() == pytest.approx(1) and found.heatmap[int(found.point[1]), int(found.point[0])] == 1


def test_round_trip_with_adapter(adapted, picture, tmp_path):
    adapted.save_pretrained(tmp_path / "out")
    again = scj.load(tmp_path / "out", adapter=tmp_path / "out")
    np.testing.assert_array_equal(again.dense(picture), adapted.dense(picture))
    np.testing.assert_array_equal(again.encode_text(TEXTS), adapted.encode_text(TEXTS))
    assert again.settings == adapted.settings


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, p: m.dense(p, "nonsense"), "unknown read-out 'nonsense'.*plain"),
        (lambda m, p: m.dense(p, "adapter"), "adapter=FOLDER"),
        (lambda m, p: m.dense([p, p[:, :30]]), "one size"),
        (lambda m, p: m.dense(p, scales=(0,)), "positive"),
        (lambda m, p: m.encode_text("one text"), "list of texts"),
        (lambda m, p: m.localize(p, []), "list of phrases"),
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
