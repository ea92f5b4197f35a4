"""The bundled CLIP, without and with an adapter, and a picture."""

import jaxtyping
import numpy as np
import pytest

import spatial_clip_jax as scj
from spatial_clip_jax.models.spec import AdapterSpec


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


@pytest.fixture
def unchecked(monkeypatch):
    """Wrong types reach the code, as with users, who have no run-time checker of annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
