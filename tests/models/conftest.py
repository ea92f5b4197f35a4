"""The reference model, once a session, and the same weights here."""

from pathlib import Path

import pytest
from transformers import CLIPModel

from spatial_clip_jax.convert.load import load_clip
from spatial_clip_jax.models.clip import Clip
from tests.models.random_clip import random_hf_clip


@pytest.fixture(scope="session")
def hf_clip() -> CLIPModel:
    """Reference in PyTorch."""
    return random_hf_clip(0)


@pytest.fixture(scope="session")
def clip(hf_clip: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """The same weights in JAX."""
    folder: Path = tmp_path_factory.mktemp("hf")
    hf_clip.save_pretrained(folder)
    return load_clip(folder)
