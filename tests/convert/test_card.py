"""The card of an exported folder: what it says, that its code runs, that a user's own text is safe."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, metadata_load
from PIL import Image

import spatial_clip_jax as scj
from spatial_clip_jax.convert.card import MARK, Card, Origin, Training, card_text, read_origin, read_training
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.spec import AdapterSpec

ROOT = Path(__file__).parents[2]
SPEC, ADAPTER = GEOMETRIES["tiny"], AdapterSpec("copy", 1, "maskclip")
SCORES = {"plain": {"pointing": 0.125, "miou": 0.25}, "adapter": {"pointing": 0.875}}
TRAINING = Training("a folder", 1234, {"steps": 600, "batch_size": 16}, SCORES)


@pytest.fixture(scope="module")
def adapted():
    model = scj.load("tiny")
    return model.with_adapter(ADAPTER, model.new_adapter(ADAPTER, seed=0)[1], training=TRAINING)


def code(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_what_it_says(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "my clip")
    text = (tmp_path / "my clip" / "README.md").read_text()
    fields = metadata_load(tmp_path / "my clip" / "README.md")
    assert fields["license"] == "apache-2.0" and fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "zero-shot-image-classification" and "clip" in fields["tags"]
    assert "base_model" not in fields  # the bundled one is on no hub
    assert MARK in text and "# my clip" in text and "1,234 pictures" in text and "600 steps of 16" in text
    assert "| adapter | 0.875 | - |" in text and "| plain | 0.125 | 0.250 |" in text
    assert "`tiny_clip`" in text and "Of the weights: apache-2.0" in text
    ModelCard.load(tmp_path / "my clip" / "README.md", ignore_metadata_errors=False)
    assert read_training(tmp_path / "my clip") == TRAINING


def test_training_and_source_outlive_a_second_save(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "first")
    again = scj.load(tmp_path / "first", adapter=tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    texts = [(tmp_path / name / "README.md").read_text() for name in ("first", "second")]
    assert texts[1] == texts[0].replace("first", "second").replace("`tiny_clip`", "`first`")
    again.without_adapter().save_pretrained(tmp_path / "second")
    text = (tmp_path / "second" / "README.md").read_text()
    assert "adapter" not in text and "1,234" not in text and not (tmp_path / "second" / "training.json").exists()


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """Where a user works: a folder with a picture, and a cache of transformers of its own."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_readmes_code_runs(adapted, desk):
    adapted.save_pretrained("exported")
    (example,) = [block for block in code((ROOT / "README.md").read_text()) if "AutoModel" in block]
    there = {}
    exec(example, there)
    assert there["dense"].shape == (1, 16, 24, 128)


def test_its_code_runs(adapted, desk):
    adapted.save_pretrained("it's mine")
    pytorch, jax = code((desk / "it's mine" / "README.md").read_text())
    there, here = {}, {}
    exec(pytorch, there)
    exec(jax, here)
    assert there["dense"].shape == (1, 16, 16, 128) and there["similarity"].shape == (1, 16, 16, 1)
    assert here["dense"].shape[0] == 1 and here["boxes"].shape[1] == 4
    phrase = np.asarray(here["model"].encode_text(["a red circle"]))
    np.testing.assert_allclose(there["similarity"].numpy(), there["dense"].numpy() @ phrase.T, atol=1e-5)


def test_a_users_text_is_left_alone_and_ours_is_not(adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    file = tmp_path / "README.md"
    file.write_text(f"{MARK}\nold")
    adapted.save_pretrained(tmp_path)
    assert "old" not in file.read_text().splitlines() and "## Use" in file.read_text()
    mine = file.read_text().replace(MARK, "").encode() + b"\xff mine"
    file.write_bytes(mine)
    adapted.save_pretrained(tmp_path)
    assert file.read_bytes() == mine


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: mit\nbase_model: org/name", Origin("x", "org/name", "mit")),
        ("license: other\nlicense_name: apple-amlr\nbase_model: [a/b]", Origin("x", "a/b", "other", "apple-amlr")),
        ("license: [mit, gpl]\nbase_model: {a: b}", Origin("x")),
        ("license: 'mit\n\n# Heading'", Origin("x")),
        ("license: !!python/object/apply:os.system ['true']", Origin("x")),
        ("license: [", Origin("x")),
        ("- license", Origin("x")),
    ],
)
def test_the_sources_licence_is_asked_for(tmp_path, front, expected):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# text")
    assert read_origin(tmp_path, "x") == expected


def test_what_is_not_known_is_said(tmp_path):
    assert read_origin(tmp_path, "clip") == Origin("clip")
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert read_origin(tmp_path, "clip") == Origin("clip")
    text = card_text(Card(SPEC, Origin("clip"), ADAPTER, None, texts=False), "out")
    assert "Of the weights: unknown: see the source, `clip`" in text and "license: unknown" in text
    assert "not recorded" in text and "Not measured." in text and "tokenizer" not in text
    assert "PyTorch" not in card_text(Card(SPEC, Origin("clip")), "out", twin=False)
    merged = card_text(Card(SPEC, Origin("clip", "org/clip", "mit"), None, TRAINING, merged=0.5), "out")
    assert "no longer the original's" in merged and "Not measured." in merged and "base_model: org/clip" in merged
    assert "adapter=folder" not in merged and "1,234 pictures" in merged


@pytest.mark.parametrize("content", ['{"data": 1, "pictures": 2, "config": {}}', '{"data": "x"}', "[]", '{"x": 1}'])
def test_a_damaged_record_is_named(adapted, tmp_path, content):
    adapted.save_pretrained(tmp_path)
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match="training.json"):
        scj.load("tiny", adapter=tmp_path)
