"""Geometries, their parameter counts, and what is refused."""

import dataclasses

import jax
import jaxtyping
import pytest

from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import GEOMETRIES, named_spec
from spatial_clip_jax.models.params import abstract_params
from spatial_clip_jax.models.spec import AdapterSpec, TextSpec, VisionSpec

# Counted on the published PyTorch checkpoints.
PUBLISHED_PARAMETERS = {
    "openai/clip-vit-base-patch32": 151_277_313,
    "openai/clip-vit-base-patch16": 149_620_737,
    "openai/clip-vit-large-patch14-336": 427_944_193,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": 986_109_441,
}
# (vision, text) in millions, as open_clip's table of models has them; PE's vision tower to the last one.
PUBLISHED_MILLIONS = {
    "EVA02-CLIP-B-16": (86.26, 63.43),
    "EVA02-CLIP-L-14": (304.11, 123.65),
    "EVA02-CLIP-L-14-336": (304.43, 123.65),
    "laion/CoCa-ViT-B-32-laion2B-s13B-b90k": (89.16, 63.43),
    "laion/CoCa-ViT-L-14-laion2B-s13B-b90k": (306.72, 123.65),
    "facebook/PE-Core-S16-384": (23.782656, None),
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_named_geometry_has_the_published_number_of_parameters(name: str):
    _, params = abstract_params(lambda rngs: Clip(named_spec(name), rngs=rngs))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_each_tower_has_the_published_number_of_parameters(name: str):
    _, params = abstract_params(lambda rngs: Clip(named_spec(name), rngs=rngs))
    for tower, millions in zip(("vision", "text"), PUBLISHED_MILLIONS[name], strict=True):
        digits = len(str(millions).partition(".")[2])
        counted = sum(leaf.size for leaf in jax.tree.leaves(params[tower])) / 1e6
        assert millions is None or round(counted, digits) == millions


def test_only_laion_weights_use_the_exact_gelu():
    clips = {name: spec for name, spec in GEOMETRIES.items() if name.startswith(("tiny", "openai/", "laion/CLIP-"))}
    activations = {name: (spec.vision.activation, spec.text.activation) for name, spec in clips.items()}
    exact = [name for name, used in activations.items() if used == ("gelu", "gelu")]
    assert exact == ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'vit'.*tiny, openai/clip-vit-base-patch32"):
        named_spec("vit")


def test_grid_takes_whole_patches_only():
    spec = named_spec("tiny").vision
    assert spec.native_grid == (8, 8)
    assert spec.grid(64, 128) == (8, 16)
    with pytest.raises(ValueError, match="100x50.*patches of 8x8.*96x48"):
        spec.grid(100, 50)
    with pytest.raises(ValueError, match="8x16"):
        spec.grid(0, 16)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: VisionSpec(64, 7, 160, 6, 5, 640), "64 is no multiple of patch_size 7"),
        (lambda: VisionSpec(64, 8, 160, 6, 3, 640), "160 does not divide into 3 heads"),
        (lambda: TextSpec(100, 8, 32, 1, 5, 64), "32 does not divide into 5 heads"),
        (
            lambda: TextSpec(100, 8, 32, 1, 4, 64, activation="silu"),
            "'gelu_tanh' or 'relu', got 'silu'",
        ),
        (
            lambda: VisionSpec(64, 8, 160, 6, 5, 640, position_resize="timm"),
            "position_resize must be 'huggingface' or .*'timm'",
        ),
        (lambda: AdapterSpec("copy", 0), "blocks must be a whole number from 1 to 200, got 0"),
        (lambda: AdapterSpec("prompt", 2), "variant must be 'copy' or 'residual' or 'lora', got 'prompt'"),
        (lambda: AdapterSpec("lora", 2, rank=0), "rank must be a whole number from 1 to .*, got 0"),
        (lambda: AdapterSpec("lora", 2, lora_alpha=0.0), "lora_alpha must be a positive number, got 0.0"),
        (lambda: AdapterSpec("lora", 2, lora_alpha=float("nan")), "lora_alpha must be a positive number, got nan"),
        (lambda: AdapterSpec("copy", 2, rank=4), "rank and lora_alpha are of the variant 'lora', not of 'copy'"),
        (lambda: AdapterSpec("copy", 2, ring=-1), "ring must be a whole number from 0 to 256, got -1"),
    ],
)
def test_impossible_geometry_is_refused(build, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        build()


@pytest.mark.parametrize("value", [0, -1, True, 64.0, "64", None, 10**9, [64]])
@pytest.mark.parametrize(
    ("tower", "field"),
    [(tower, field) for tower in ("vision", "text") for field in ("width", "layers", "heads", "mlp_width")]
    + [("vision", "image_size"), ("vision", "patch_size"), ("text", "vocab_size"), ("text", "context_length")],
)
def test_sizes_are_positive_whole_numbers(monkeypatch, tower: str, field: str, value: object):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, who have no run-time checker
    with pytest.raises(ValueError, match=f"{field} must be a whole number from 1 to .*, got"):
        dataclasses.replace(getattr(named_spec("tiny"), tower), **{field: value})


@pytest.mark.parametrize(
    ("tower", "field", "values"),
    [
        ("vision", "norm_eps", (0, -1e-5, float("nan"), float("inf"), "1e-5", None, True)),
        ("vision", "std", ((0.2, 0, 0.2), (0.2, -1, 0.2), (0.2, float("nan"), 0.2), (0.2, 0.2), [0.2] * 3, None)),
        ("vision", "mean", ((0.2, float("inf"), 0.2), (0.2, 10**400, 0.2), ("0.2", 0.2, 0.2), 0.5, (0.2,) * 4)),
        ("text", "norm_eps", (0, float("nan"))),
        ("text", "eos_token_id", (707, -1, 706.0, None, False)),
        ("text", "bos_token_id", (707, "705")),
    ],
)
def test_other_fields_hold_what_a_tower_can_use(monkeypatch, tower: str, field: str, values: tuple):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for value in values:
        with pytest.raises(ValueError, match=f"{field} must"):
            dataclasses.replace(getattr(named_spec("tiny"), tower), **{field: value})


@pytest.mark.parametrize("value", [0, "128", None, 1.5])
def test_the_shared_space_has_a_size(monkeypatch, value: object):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="ClipSpec.embed_dim must be a whole number"):
        dataclasses.replace(named_spec("tiny"), embed_dim=value)
