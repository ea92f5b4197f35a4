"""The reference model and its checkpoint folder, once a session."""

from pathlib import Path

import pytest
from transformers import CLIPModel

from tests.models.random_clip import random_hf_clip, write_tokenizer


@pytest.fixture(scope="session")
def hf_clip() -> CLIPModel:
    """Reference in PyTorch."""
    return random_hf_clip(0)


@pytest.fixture(scope="session")
def hf_folder(hf_clip: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference as transformers saves it, with a tokenizer beside it; to be read only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    hf_clip.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    return folder
