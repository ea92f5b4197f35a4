"""The card of an exported folder, its README.md: what the model is, what it was trained on, what it can."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load

from spatial_clip_jax.convert.source import naming, read_json
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, is_finite

CARD, TRAINING = "README.md", "training.json"
MARK = "<!-- Written by spatial_clip_jax, and written anew with the folder: without this line the text is yours. -->"
UNKNOWN = "unknown"
# What may stand in a card's front matter: names, not text.
NAME = re.compile(r"[\w.\-]{1,96}(/[\w.\-]{1,96})?")
TAGS = ["clip", "spatial-awareness", "dense-features", "zero-shot", "jax"]


@dataclass(frozen=True)
class Origin:
    """The CLIP that was loaded: its name, its repository on the hub and its licence where these are known."""

    name: str
    repository: str | None = None
    licence: str = UNKNOWN
    licence_name: str | None = None  # where `licence` is "other"


@dataclass(frozen=True)
class Training:
    """What an adapter was trained on. data: in words; config: the settings; benchmark: {row: {metric: fraction}}."""

    data: str
    pictures: int
    config: Mapping[str, Any]
    benchmark: Mapping[str, Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        """ValueError for what a damaged file may hold."""
        rows = [] if self.benchmark is None else self.benchmark.values()
        numbers = [value for row in rows for value in row.values()]
        kinds = isinstance(self.data, str) and type(self.pictures) is int and isinstance(self.config, Mapping)
        if not kinds or not all(map(is_finite, numbers)):
            raise ValueError("data must be text, pictures a whole number, and benchmark {row: {metric: number}}")


@dataclass(frozen=True)
class Card:
    """All that a card says."""

    spec: ClipSpec
    origin: Origin
    adapter: AdapterSpec | None = None
    training: Training | None = None
    merged: float | None = None  # the adapter's share in merged weights
    texts: bool = True  # whether there is a tokenizer


def read_origin(folder: Path, name: str) -> Origin:
    """Of a checkpoint's folder, whose README.md may say the licence and the model on the hub that it came from."""
    fields = _front_matter(folder / CARD)
    base = fields.get("base_model")
    repository = _name(base[0] if isinstance(base, list) and base else base)
    licence = _name(fields.get("license")) or UNKNOWN
    return Origin(name, repository, licence, _name(fields.get("license_name")))


def read_training(folder: Path) -> Training | None:
    """What an exported adapter's folder says of its training; None if it says nothing."""
    file = folder / TRAINING
    if not file.is_file():
        return None
    fields = read_json(file, TRAINING)
    with naming(file):
        return Training(**fields)


def _front_matter(file: Path) -> Mapping[str, Any]:
    try:
        return (metadata_load(file) if file.is_file() else None) or {}
    except (ValueError, OSError):  # no YAML, or no text: it says nothing
        return {}
    except Exception:  # PyYAML's own errors share no base with ValueError, and deep nesting ends its recursion
        return {}


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and NAME.fullmatch(value) else None


def is_ours(file: Path) -> bool:
    """Whether a card may be overwritten: there is none, or it is one of these."""
    return not file.is_file() or MARK.encode() in file.read_bytes()


def card_text(card: Card, folder: str, twin: bool = True) -> str:
    """The card of a folder of that name. twin: whether to show the PyTorch twin."""
    parts = [_front(card), MARK, f"# {folder}", _what(card), *_training(card), *_benchmark(card)]
    return "\n\n".join([*parts, _use(card, folder, twin), _licence(card.origin)]) + "\n"


def _front(card: Card) -> str:
    """The front matter, which the hub reads."""
    data = ModelCardData(
        license=card.origin.licence,
        license_name=card.origin.licence_name,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        base_model=card.origin.repository,
        tags=TAGS,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what(card: Card) -> str:
    vision, origin = card.spec.vision, card.origin.repository or card.origin.name
    clip = (
        f"The CLIP `{origin}` ({vision.image_size} px, patch {vision.patch_size}, {vision.layers} layers of "
        f"{vision.width}; {card.spec.embed_dim} dimensions shared with text)"
    )
    if card.merged is not None:
        return (
            f"{clip}, with a spatial adapter merged into its last blocks by the weight {card.merged:g}. Its embeddings "
            "of whole pictures, and so its zero-shot classification, are no longer the original's."
        )
    if card.adapter is None:
        return f"{clip}, unchanged. Dense maps in text space are read from its last block without training."
    return (
        f"{clip}, unchanged, and beside it a spatial adapter, which gives dense maps in text space in one pass. "
        "Embeddings of whole pictures, and so zero-shot classification, are the original's."
    )


def _training(card: Card) -> list[str]:
    if card.adapter is None and card.merged is None:
        return []
    if card.training is None:
        return ["## Training", "What the adapter was trained on was not recorded."]
    trained, config = card.training, card.training.config
    steps = f"{config['steps']:,} steps of {config['batch_size']} pictures; " if "batch_size" in config else ""
    return [
        "## Training",
        f"The adapter was trained by spatial_clip_jax on {trained.pictures:,} pictures without labels or captions: "
        f"{trained.data}. {steps}all settings are in `{TRAINING}`.",
    ]


def _benchmark(card: Card) -> list[str]:
    """The table; merged weights are another model than the one that was measured."""
    if card.training is None or not card.training.benchmark or card.merged is not None:
        return ["## Benchmark", "Not measured."]
    return [
        "## Benchmark",
        "On held-out pictures of spatial_clip_jax's procedural world, not on photographs. `adapter` is one pass, "
        "`fusion` the frozen teacher of many passes, the others read the last block without training. Fractions, "
        "higher is better.",
        _table(card.training.benchmark),
    ]


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    metrics = list(dict.fromkeys(metric for row in scores.values() for metric in row))
    lines = [["row", *metrics], ["---", *["---:"] * len(metrics)]]
    lines += [[row, *(_cell(values.get(metric)) for metric in metrics)] for row, values in scores.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _use(card: Card, folder: str, twin: bool) -> str:
    adapter = ", adapter=folder" if card.adapter else ""
    return (
        ("## Use\n" + IN_PYTORCH * twin + IN_JAX)
        .format(
            folder=json.dumps(folder, ensure_ascii=False),
            size=2 * card.spec.vision.image_size,
            pytorch=TEXT_IN_PYTORCH if card.texts else "",
            adapter=adapter,
            jax=TEXT_IN_JAX if card.texts else "",
        )
        .strip()
    )


def _licence(origin: Origin) -> str:
    named = origin.licence_name or origin.licence
    if named == UNKNOWN:
        named = f"unknown: see the source, `{origin.repository or origin.name}`"
    return f"## Licence\n\nOf the weights: {named}. Of spatial_clip_jax's code: apache-2.0."


IN_PYTORCH = """
In PyTorch, with transformers:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = {folder}  # or the repository's name on the hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder)
# The whole picture, its sides whole patches; without the two options its centre square alone is seen.
size = {{"height": {size}, "width": {size}}}
picture = Image.open("picture.png")
pixels = processor(picture, size=size, do_center_crop=False, return_tensors="pt").pixel_values
with torch.inference_mode():
    dense = model.get_dense_features(pixels)  # (1, h, w, e), unit vectors
{pytorch}```

transformers' own class loads the model alone, without this folder's code.
"""
IN_JAX = """
In JAX, with spatial_clip_jax:

```python
import spatial_clip_jax as scj

folder = {folder}
model = scj.load(folder{adapter})
dense = model.dense("picture.png", scales=(2.0,))  # (1, h, w, e)
{jax}```
"""
TEXT_IN_PYTORCH = """    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(["a red circle"], padding="max_length", return_tensors="pt")
    similarity = dense @ model.get_phrase_features(tokens.input_ids).T  # (1, h, w, 1)
"""
TEXT_IN_JAX = """boxes = model.localize("picture.png", ["a red circle"])[0].boxes  # xyxy pixels
"""
