"""The adapter: what it starts as, what it trains, and the tower it merges into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.models.adapter import SpatialAdapter, materialised, merge
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.last_block import LAST_BLOCKS
from spatial_clip_jax.models.params import (
    Params,
    abstract_params,
    flatten_params,
    init_module,
    join_params,
    split_params,
    unflatten_params,
)
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.spec import AdapterSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionOutput, VisionTower
from tests.models.random_clip import random_pixels


def make(clip: Clip, variant: str, blocks: int = 2, readout: str = "plain", noise: float = 0.0) -> SpatialAdapter:
    """A fresh adapter, or one moved away from its start."""
    spec = AdapterSpec(variant, blocks, readout)
    adapter = init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0)
    definition, params = split_params(adapter)
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + noise * rng.standard_normal(x.shape).astype(np.float32), params)
    return join_params(definition, moved)


EVA = dict(mlp="swiglu", sub_norm=True, key_bias=False, rotary="eva", layer_scale=True)


@pytest.fixture(scope="module")
def output(clip: Clip) -> VisionOutput:
    return clip.vision(jnp.asarray(random_pixels((24, 40))))


@pytest.mark.parametrize("variant", ["copy", "residual"])
@pytest.mark.parametrize("readout", LAST_BLOCKS)
def test_starts_as_the_towers_own_readout(clip: Clip, output: VisionOutput, variant: str, readout: str):
    expected = dense_map(clip.vision, output, readout)
    np.testing.assert_array_equal(make(clip, variant, readout=readout)(clip.vision, output), expected)
    moved = make(clip, variant, readout=readout, noise=0.1)(clip.vision, output)
    assert np.abs(moved - expected).max() > 0.05
    np.testing.assert_allclose(jnp.linalg.norm(moved, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("readout", ["plain", "naclip"])
def test_lora_starts_as_the_towers_own_readout_and_is_w_plus_s_a_b(clip: Clip, output: VisionOutput, readout: str):
    expected = dense_map(clip.vision, output, readout)
    np.testing.assert_array_equal(make(clip, "lora", readout=readout)(clip.vision, output), expected)
    moved = make(clip, "lora", readout=readout, noise=0.1)
    found = moved(clip.vision, output)
    assert np.abs(found - expected).max() > 0.05
    params = by_hand(clip, moved)
    copy = split_params(make(clip, "copy", readout=readout))[0]
    np.testing.assert_allclose(found, join_params(copy, params)(clip.vision, output), atol=1e-6)
    spec, equal = materialised(clip.vision, moved)
    assert spec == AdapterSpec("copy", 2, readout)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), equal, params)


def by_hand(clip: Clip, adapter: SpatialAdapter) -> Params:
    """The parameters of the "copy" adapter that equals a "lora" one of two blocks: W + 16 / 8 A B, in fp64."""
    parts = flatten_params(split_params(adapter)[1])
    original = flatten_params(split_params(clip.vision)[1])
    params = {path: leaf for path, leaf in original.items() if path.startswith("post_norm/")}
    for path, leaf in original.items():
        for ours in ("0", "1"):
            mine = path.replace(f"blocks/{int(ours) + 1}/", f"blocks/{ours}/")
            if mine != path:
                factors = [parts.get(mine.replace("kernel", name)) for name in "ab"] if "kernel" in path else [None]
                params[mine] = leaf if factors[0] is None else leaf + 2.0 * np.matmul(*map(np.float64, factors))
    return unflatten_params(params)


def test_lora_trains_two_factors_of_every_linear_kernel_of_every_family(clip: Clip):
    params = flatten_params(split_params(make(clip, "lora", 1))[1])
    layers = [f"attention/{name}" for name in ("q", "k", "v", "out")]
    assert params.keys() == {f"blocks/0/{name}/{part}" for name in [*layers, "mlp/fc1", "mlp/fc2"] for part in "ab"}
    assert params["blocks/0/mlp/fc1/a"].shape == (48, 8) and params["blocks/0/mlp/fc1/b"].shape == (8, 96)
    eva, lora = VisionSpec(16, 8, 16, 2, 2, 32, **EVA), AdapterSpec("lora", 2, rank=3)
    shapes = abstract_params(lambda rngs: SpatialAdapter(lora, VisionTower(eva, 8, rngs=rngs), rngs=rngs))[1]
    params = flatten_params(shapes)
    layers += [f"mlp/{name}" for name in ("gate", "up", "down")]
    assert params.keys() == {f"blocks/{i}/{name}/{part}" for i in (0, 1) for name in layers for part in "ab"}
    assert params["blocks/1/mlp/down/b"].shape == (3, 16)


@pytest.mark.parametrize("variant", ["copy", "lora", "residual"])
def test_features_are_post_normed_tokens_before_the_head(clip: Clip, output: VisionOutput, variant: str):
    last, norm = np.asarray(output.hidden[-1], np.float64), split_params(clip.vision)[1]["post_norm"]
    normal = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + clip.spec.vit.norm_eps)
    found = make(clip, variant).features(clip.vision, output)
    np.testing.assert_allclose(found, normal * norm["scale"] + norm["bias"], atol=1e-5)


def test_copy_is_fed_with_the_input_of_its_first_block(clip: Clip, output: VisionOutput):
    for blocks in (1, 2, 3):
        adapter = make(clip, "copy", blocks)
        spoiled = [jnp.full_like(hidden, jnp.nan) for hidden in output.hidden]
        spoiled[3 - blocks] = output.hidden[3 - blocks]
        result = adapter(clip.vision, VisionOutput(tuple(spoiled), output.embedding, output.grid))
        np.testing.assert_allclose(result, dense_map(clip.vision, output, "plain"), atol=1e-6)


def test_copy_owns_its_weights_and_residual_has_new_ones(clip: Clip):
    paths = {name: set(flatten_params(split_params(make(clip, name))[1])) for name in ("copy", "residual")}
    block = {path for path in paths["residual"] if path.startswith("blocks/1/")}
    assert "blocks/1/attention/q/kernel" in block and len(block) == 16
    assert paths["copy"] - paths["residual"] == {"post_norm/scale", "post_norm/bias"}
    adapter = init_module(lambda rngs: SpatialAdapter(AdapterSpec("copy", 1), clip.vision, rngs=rngs), 0)
    for leaf in jax.tree.leaves(split_params(adapter)[1]):
        leaf.delete()  # as a training step that donates its state does
    assert np.isfinite(clip.vision.blocks[2].mlp.fc1.kernel[...]).all()


@pytest.mark.parametrize("variant", ["copy", "residual"])
def test_every_output_projection_gets_a_gradient_at_the_start(clip: Clip, output: VisionOutput, variant: str):
    definition, params = split_params(make(clip, variant))
    target = jax.random.normal(jax.random.key(0), (2, 3, 5, 48))

    def loss(params):
        return (join_params(definition, params)(clip.vision, output) * target).sum()

    flat = flatten_params(jax.jit(jax.grad(loss))(params))
    for path in ("blocks/0/attention/out/kernel", "blocks/1/mlp/fc2/kernel"):
        assert np.abs(flat[path]).max() > 1e-4, path


@pytest.mark.parametrize("variant", ["copy", "lora"])
def test_merging_nothing_gives_the_original_bit_for_bit(clip: Clip, variant: str):
    original = split_params(clip.vision)[1]
    merged = merge(clip.vision, make(clip, variant, noise=0.1), 0.0)
    jax.tree.map(np.testing.assert_array_equal, merged, original)


@pytest.mark.parametrize(("variant", "readout"), [("copy", "plain"), ("copy", "naclip"), ("lora", "naclip")])
def test_merging_all_gives_the_adapters_map(clip: Clip, output: VisionOutput, variant: str, readout: str):
    adapter = make(clip, variant, readout=readout, noise=0.1)
    tower = join_params(split_params(clip.vision)[0], merge(clip.vision, adapter, 1.0))
    merged_output = tower(jnp.asarray(random_pixels((24, 40))))
    merged_map = dense_map(tower, merged_output, readout)
    np.testing.assert_allclose(merged_map, adapter(clip.vision, output), atol=1e-6)


def test_merging_half_is_the_mean_of_the_copied_weights_alone(clip: Clip):
    adapter = make(clip, "copy", 1, noise=0.1)
    ours, theirs = (flatten_params(split_params(module)[1]) for module in (adapter, clip.vision))
    merged = flatten_params(merge(clip.vision, adapter, 0.5))
    for path, leaf in theirs.items():
        mine = ours.get(path.replace("blocks/2/", "blocks/0/"), leaf) if "blocks/0" not in path else leaf
        np.testing.assert_allclose(merged[path], (leaf + mine) / 2, atol=1e-6, err_msg=path)


def test_merging_half_of_low_rank_is_half_the_update_and_no_norm(clip: Clip):
    adapter = make(clip, "lora", noise=0.1)
    merged, original = (
        flatten_params(tree) for tree in (merge(clip.vision, adapter, 0.5), split_params(clip.vision)[1])
    )
    ours = flatten_params(by_hand(clip, adapter))
    kernel = (original["blocks/2/mlp/fc2/kernel"] + ours["blocks/1/mlp/fc2/kernel"]) / 2
    np.testing.assert_allclose(merged["blocks/2/mlp/fc2/kernel"], kernel, atol=1e-6)
    np.testing.assert_array_equal(merged["post_norm/scale"], original["post_norm/scale"])
    np.testing.assert_array_equal(merged["blocks/0/mlp/fc2/kernel"], original["blocks/0/mlp/fc2/kernel"])


def test_impossible_adapters_are_refused(clip: Clip):
    with pytest.raises(ValueError, match="4 blocks to copy, but the tower has 3"):
        make(clip, "copy", 4)
    with pytest.raises(ValueError, match="'gem'.*Valid names: plain"):
        make(clip, "residual", readout="gem")
    with pytest.raises(ValueError, match="4 blocks to update, but the tower has 3"):
        make(clip, "lora", 4)
    with pytest.raises(ValueError, match="Only a 'copy' or 'lora' adapter can be merged"):
        merge(clip.vision, make(clip, "residual"), 0.5)
