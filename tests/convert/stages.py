"""What a CLIP computes stage by stage, for comparison with another implementation, and files of its weights."""

import functools
from pathlib import Path

import jax
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import join_params, split_params
from spatial_clip_jax.models.readout import dense_map

SIZES = [(32, 32), (64, 64), (24, 24), (24, 56)]  # native, larger, smaller, not square


@functools.partial(jax.jit, static_argnums=0)
def _stages(definition, params, pixels, ids):
    clip = join_params(definition, params)
    output = clip.vision(pixels)
    vision = [*output.hidden, output.embedding, dense_map(clip.vision, output, "value")]
    return vision if ids is None else [*vision, clip.text(ids)]


def stages(clip: Clip, pixels: np.ndarray, ids: np.ndarray | None = None) -> list[jax.Array]:
    """Every hidden state, the embedding, the dense map of the value path, and the texts' embedding if there are ids."""
    return _stages(*split_params(clip), pixels, ids)


def save(state: dict[str, torch.Tensor], file: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The weights as safetensors, in a folder that need not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.to(dtype).clone().contiguous() for key, value in state.items()}, file)
    return file


def assert_bit_equal(before: Path, after: Path, dropped: str = "") -> None:
    """What was written back is what was read, bit for bit in its type, but for keys that contain `dropped`."""
    old, new = load_file(before), load_file(after)
    assert {key for key in old if not dropped or dropped not in key} == new.keys()
    assert all(torch.equal(old[key], new[key].to(old[key].dtype)) for key in new)
