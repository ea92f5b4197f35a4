"""How sure a conversion is: outputs against PyTorch's own class, where there is one; else a checksum."""

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatial_clip_jax.convert.source import read_json
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import Params, abstract_params, flatten_params, join_params
from spatial_clip_jax.models.spec import ClipSpec, VisionSpec

logger = logging.getLogger(__name__)

# The classes of transformers that a model_type's folder may be compared with. A name in the folder's config.json
# chooses among these alone: Auto classes would run code that the folder brings.
CLASSES = {
    "clip": ("CLIPModel",),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "metaclip_2": ("MetaClip2Model",),
    "clipseg": ("CLIPSegForImageSegmentation", "CLIPSegModel"),
    "altclip": ("AltCLIPModel",),
    "chinese_clip": ("ChineseCLIPModel",),
    "siglip": ("SiglipModel",),
    "siglip_vision_model": ("SiglipVisionModel",),
    "siglip2": ("Siglip2Model",),
    "siglip2_vision_model": ("Siglip2VisionModel",),
    "tipsv2": ("Tipsv2Model",),
}


def differences(source: Path, spec: ClipSpec, params: Params) -> dict[str, tuple[float, ...]] | None:
    """{tower: (largest absolute difference of its embeddings from transformers', their largest value)}.

    In fp32, of random inputs. None where torch or transformers is not installed, or `source` is no folder of theirs.
    """
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if not installed or not (source / "config.json").is_file():
        return None
    try:
        model = _reference(source)
    except Exception as error:  # a configuration that we read may fail in transformers in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning("not compared with PyTorch: transformers cannot load %s (%s)", source, reason)
        return None
    if model is None:
        return None
    definition = abstract_params(lambda rngs: Clip(spec, rngs=rngs))[0]
    clip = join_params(definition, jax.tree.map(jnp.asarray, params))
    side = spec.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((1, side, side, 3)).astype(np.float32)
    ours = {"vision": clip.vision(jnp.asarray(pixels)).embedding}
    theirs = {"vision": _vision(model, spec.vit, pixels)}
    if spec.text is not None:
        # No padding is drawn where it would be masked, which transformers does only when it is told to.
        first = 1 + spec.text.pad_token_id if spec.text.pool == "mean" else 0
        ids = np.random.default_rng(0).integers(first, spec.text.vocab_size, (2, spec.text.context_length))
        if spec.text.eos_token_id is not None:
            ids[:, -1] = spec.text.eos_token_id
        ours["text"], theirs["text"] = clip.text(jnp.asarray(ids)), _text(model, ids)
    return {name: _largest(np.asarray(ours[name]) - theirs[name], theirs[name]) for name in ours}


def checksum(params: Params) -> str:
    """SHA-256 of every parameter's path, shape and fp32 values."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_params(params).items()):
        array = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{path}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _largest(*arrays: np.ndarray) -> tuple[float, ...]:
    return tuple(float(np.abs(array).max()) for array in arrays)


def _reference(folder: Path) -> Any:
    """The class of this model_type, in fp32; None when this transformers has none. No code of the folder is run."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = read_json(folder / "config.json", "config.json")
    named = (config.get("architectures") or [""])[0]
    names = CLASSES.get(config["model_type"], ())
    name = named if named in names else next(iter(names), "")
    kind = getattr(transformers, name, None)
    if kind is None:
        logger.info("transformers %s has no class for model_type %s", transformers.__version__, config["model_type"])
        return None
    model = kind.from_pretrained(folder, dtype="float32", attn_implementation="eager", trust_remote_code=False).eval()
    return getattr(model, "clip", model)  # CLIPSeg's


def _vision(model: Any, spec: VisionSpec, pixels: np.ndarray) -> np.ndarray:
    import torch

    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        pooled = tower(**_inputs(spec, pixels)).pooler_output
        return (model.visual_projection(pooled) if hasattr(model, "visual_projection") else pooled).numpy()


def _inputs(spec: VisionSpec, pixels: np.ndarray) -> dict[str, Any]:
    """Pixels as the class takes them: whole, or (NaFlex) cut into patches with their grid."""
    import torch

    if spec.native_view != "patches":
        return {"pixel_values": torch.tensor(pixels).permute(0, 3, 1, 2)}
    (rows, columns), patch = spec.native_grid, spec.patch_size
    cut = pixels.reshape(1, rows, patch, columns, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return {
        "pixel_values": torch.tensor(cut.reshape(1, rows * columns, -1)),
        "pixel_attention_mask": torch.ones(1, rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]]),
    }


def _text(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        pooled = model.text_model(torch.tensor(ids)).pooler_output
        return (model.text_projection(pooled) if hasattr(model, "text_projection") else pooled).numpy()
