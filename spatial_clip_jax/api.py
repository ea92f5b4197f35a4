"""`load` a CLIP; `SpatialClip`, which it gives, is then asked where things are."""

import contextlib
from pathlib import Path

from jax.typing import DTypeLike

from spatial_clip_jax.convert import hub
from spatial_clip_jax.convert.card import read_origin, read_training
from spatial_clip_jax.convert.export import SETTINGS_FILE
from spatial_clip_jax.convert.load import check_trunk, read_adapter, read_stored
from spatial_clip_jax.convert.source import naming, read_json
from spatial_clip_jax.evaluate.benchmark import Settings
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.spatial_clip import SpatialClip

__all__ = ["TINY", "SpatialClip", "load", "located"]
TINY = Path(__file__).parent / "assets" / "tiny_clip"


def load(
    source: str | Path = "tiny",
    adapter: str | Path | None = None,
    *,
    spec: ClipSpec | str | None = None,
    tokenizer: str | Path | None = None,
    dtype: DTypeLike = "float32",
) -> SpatialClip:
    """A CLIP ready to be asked.

    source: "tiny", the bundled model; a local folder (Hugging Face's, open_clip's, `spatial-clip convert`'s); a file of
    weights in any known names (.safetensors, .npz; .pt, .pth and .bin with torch installed); or a repository of the
    Hugging Face Hub, "org/name" or "org/name@revision", which is fetched into its cache.
    adapter: a trained adapter: a workdir of `launch.train`, or a folder written by `save_pretrained`.
    spec: the geometry, or its name in `models.geometries.GEOMETRIES`, for a file, which does not say it.
    tokenizer: a tokenizer.json, by default the one beside the weights; without any, texts cannot be asked about.
    dtype: what pictures are computed in, "float32" or "bfloat16"; norms, softmax and what follows the tower stay in
    fp32, and so do weights and texts.

    FileNotFoundError if a folder or file is missing; ValueError, naming every fault, if weights do not fit, or if the
    adapter was trained beside another CLIP.
    """
    path = located(source)
    if not isinstance(spec, ClipSpec | str | None):
        raise ValueError(f"spec must be a ClipSpec, the name of one or None, got {spec!r}")
    found, params, beside, form = read_stored(path, named_spec(spec) if isinstance(spec, str) else spec)
    model = SpatialClip(found, params, beside if tokenizer is None else _path(tokenizer, "tokenizer"), dtype)
    model.form = form
    model.origin = read_origin(path if path.is_dir() else path.parent, path.resolve().name)
    return model if adapter is None else _with_adapter(model, _path(adapter, "adapter"), source)


def located(source: str | Path) -> Path:
    """Where the checkpoint called `source` is, as in `load`; one of the Hub is fetched. FileNotFoundError for none."""
    path = TINY if str(source) == "tiny" else _path(source, "source")
    with contextlib.suppress(OSError, ValueError):  # what cannot be a file's name is none
        if path.exists():
            return path
    if isinstance(source, str) and hub.is_repo_id(source):
        return hub.fetch(source)
    raise FileNotFoundError(
        f"no checkpoint at {source!r}: give 'tiny', a local folder with config.json, model.safetensors and "
        "tokenizer.json, a file of weights, or a model of the Hub such as openai/clip-vit-base-patch16"
    )


def _path(given: str | Path, name: str) -> Path:
    if not isinstance(given, str | Path) or not str(given):
        raise ValueError(f"{name} must be the path of a file or folder, got {given!r}")
    return Path(given)


def _with_adapter(model: SpatialClip, folder: Path, source: str | Path) -> SpatialClip:
    found = [place for place in (folder, folder / "export") if (place / "adapter.json").is_file()]
    if not found:
        raise FileNotFoundError(f"no adapter in {folder}: expected adapter.json there or in its export/ folder")
    file = found[0] / SETTINGS_FILE
    fields = read_json(file, SETTINGS_FILE) if file.is_file() else {}
    with naming(file):
        settings = Settings(**fields)
    spec, params = read_adapter(found[0], model.spec)
    check_trunk(found[0], model.params["vision"], source)
    return model.with_adapter(spec, params, settings, read_training(found[0]))
