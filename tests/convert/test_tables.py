"""The name table, both ways, and the layouts against PyTorch's own layers."""

import numpy as np
import pytest
import torch

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.families.adapter import ADAPTER
from spatial_clip_jax.convert.families.clip import CLIP_TABLE
from spatial_clip_jax.convert.families.open_clip import OPEN_CLIP_TABLE
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import abstract_params, flatten_params
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.vision import VisionTower

TINY = named_spec("tiny")


def clip_paths() -> dict[str, object]:
    return flatten_params(abstract_params(lambda rngs: Clip(TINY, rngs=rngs))[1])


def adapter_paths() -> dict[str, object]:
    def build(rngs):
        tower = VisionTower(TINY.vision, TINY.embed_dim, rngs=rngs)
        return SpatialAdapter(AdapterSpec("copy", 2), tower, rngs=rngs)

    return flatten_params(abstract_params(build)[1])


@pytest.mark.parametrize(
    ("paths", "table"),
    [
        (clip_paths(), CLIP_TABLE),
        (clip_paths(), OPEN_CLIP_TABLE),
        (adapter_paths(), ADAPTER.table),
    ],
)
def test_every_parameter_has_one_place_and_the_way_back(paths, table):
    places = {path: tables.to_theirs(path, table) for path in paths}
    assert len({(mapped.name, mapped.piece) for mapped in places.values()}) == len(paths)
    for path, mapped in places.items():
        back = tables.to_ours(mapped.name, table)
        assert len(back) == mapped.pieces
        assert back[mapped.piece] == tables.Mapped(path, mapped.layout, mapped.piece, mapped.pieces)


def test_unknown_names_are_not_guessed():
    for key in ("vision_model.encoder.layers.x.mlp.fc1.weight", "logit_scale2", "audio_model.position.bias"):
        assert not tables.to_ours(key, CLIP_TABLE)
    with pytest.raises(ValueError, match="'vision/blocks/0/gate' has no name there"):
        tables.to_theirs("vision/blocks/0/gate", CLIP_TABLE)


def test_layouts_are_those_of_pytorchs_layers():
    x = np.random.default_rng(0).standard_normal((4, 4, 3)).astype(np.float32)
    conv = torch.nn.Conv2d(3, 5, 4, bias=False)
    kernel = tables.array_to_ours(conv.weight.detach().numpy(), "conv", (4, 4, 3, 5))
    expected = conv(torch.from_numpy(x).permute(2, 0, 1)[None]).detach().numpy().ravel()
    np.testing.assert_allclose(np.einsum("hwc,hwcd->d", x, kernel), expected, atol=1e-5)
    linear = torch.nn.Linear(3, 7, bias=False)
    kernel = tables.array_to_ours(linear.weight.detach().numpy(), "linear", (3, 7))
    np.testing.assert_allclose(x @ kernel, linear(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("same", ()),
        ("same", (3, 2)),
        ("linear", (3, 2)),
        ("conv", (2, 3, 4, 5)),
        ("patches", (2, 3, 4, 5)),
        ("row", ()),
        ("row", (3,)),
        ("rows", (3,)),
    ],
)
def test_layouts_have_their_inverse(layout, shape):
    array = np.random.default_rng(0).standard_normal(shape)
    theirs = tables.array_to_theirs(array, layout)
    assert theirs.shape == tables.shape_to_theirs(shape, layout)
    assert theirs.flags.c_contiguous
    np.testing.assert_array_equal(tables.array_to_ours(theirs, layout, shape), array)
