"""Small models of transformers' classes with every weight drawn: the references of the Hugging Face families."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

LAYERS, WIDTH, PATCH, NATIVE = 3, 48, 8, 32
TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
}
VISION = {**TOWER, "image_size": NATIVE, "patch_size": PATCH}
TEXT = {**TOWER, "num_hidden_layers": 2, "vocab_size": 119, "max_position_embeddings": 24}
TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def siglip() -> SiglipModel:
    return drawn(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)))


def siglip_vision() -> SiglipVisionModel:
    return drawn(SiglipVisionModel(SiglipConfig(text_config=TEXT, vision_config=VISION).vision_config))


def naflex() -> Siglip2Model:
    vision = {**TOWER, "patch_size": PATCH, "num_patches": (NATIVE // PATCH) ** 2}
    return drawn(Siglip2Model(Siglip2Config(text_config=TEXT, vision_config=vision)))


def clip_vision(projected: bool) -> CLIPVisionModel | CLIPVisionModelWithProjection:
    kind = CLIPVisionModelWithProjection if projected else CLIPVisionModel
    return drawn(kind(CLIPVisionConfig(**VISION, projection_dim=40)))


def metaclip_2() -> MetaClip2Model:
    text = {**TEXT, **TOKENS, "projection_dim": 40}
    return drawn(MetaClip2Model(MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=40)))


def clipseg() -> CLIPSegForImageSegmentation:
    text = {**TEXT, "bos_token_id": 117, "eos_token_id": 118, "pad_token_id": 1}
    config = CLIPSegConfig(text_config=text, vision_config=VISION, projection_dim=40, extract_layers=[0, 1])
    return drawn(CLIPSegForImageSegmentation(config))


def altclip() -> AltCLIPModel:
    text = {**TEXT, **TOKENS, "project_dim": 40}
    return drawn(AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=40)))


def chinese_clip() -> ChineseCLIPModel:
    return drawn(ChineseCLIPModel(ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=40)))


def drawn(model: PreTrainedModel, seed: int = 0, scaled: bool = False) -> Any:
    """The model with every weight drawn, so that none can be forgotten; embeddings small, so that epsilons matter.

    scaled: matrices by the square root of their inputs, as a trained model of full width has them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif not name.startswith("logit"):
                spread = parameter[0].numel() ** -0.5 if scaled and parameter.ndim > 1 else 0.1
                parameter.copy_((0.02 if "embedding" in name else spread) * noise)
    return model.eval()


def towers_of(model: Any) -> Any:
    """What holds `vision_model` and `text_model`: the CLIP inside CLIPSeg, else the model; a tower alone is wrapped."""
    return getattr(model, "clip", model)


@torch.no_grad()
def vision_states(model: Any, pixels: np.ndarray) -> list[np.ndarray]:
    """Every block's input and the last one's output, then the embedding, of (b, H, W, 3) pixels at any size."""
    clip = towers_of(model)
    tower = getattr(clip, "vision_model", clip)
    if isinstance(model, Siglip2Model):
        output = tower(**patches_of(pixels), output_hidden_states=True)
    else:
        tensor = torch.tensor(pixels).permute(0, 3, 1, 2)
        output = tower(pixel_values=tensor, output_hidden_states=True, interpolate_pos_encoding=True)
    embedding = output.pooler_output
    if hasattr(clip, "visual_projection"):
        embedding = clip.visual_projection(embedding)
    return [state.numpy() for state in (*output.hidden_states, embedding)]


def patches_of(pixels: np.ndarray) -> dict[str, Tensor]:
    """NaFlex's inputs: the patches cut out, row by row, channels last."""
    b, height, width, _ = pixels.shape
    grid = (height // PATCH, width // PATCH)
    cut = pixels.reshape(b, grid[0], PATCH, grid[1], PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, PATCH**2 * 3)
    return {
        "pixel_values": torch.tensor(cut),
        "pixel_attention_mask": torch.ones(b, grid[0] * grid[1], dtype=torch.int64),
        "spatial_shapes": torch.tensor([grid] * b),
    }


@torch.no_grad()
def text_embedding(model: Any, ids: np.ndarray) -> np.ndarray:
    """Of full rows of token ids."""
    clip = towers_of(model)
    pooled = clip.text_model(torch.tensor(ids, dtype=torch.int64)).pooler_output
    return (clip.text_projection(pooled) if hasattr(clip, "text_projection") else pooled).numpy()


@torch.no_grad()
def probe_value_path(model: SiglipModel, pixels: np.ndarray) -> np.ndarray:
    """Unit vectors (b, n, d): the pooling head's values of each token by itself, with the head's MLP and residual."""
    last = torch.tensor(vision_states(model, pixels)[-2])
    vision: nn.Module = model.vision_model
    width = last.shape[-1]
    head, tokens = vision.head, vision.post_layernorm(last)
    weight, bias = head.attention.in_proj_weight[-width:], head.attention.in_proj_bias[-width:]
    mixed = head.attention.out_proj(nn.functional.linear(tokens, weight, bias))
    return nn.functional.normalize(mixed + head.mlp(head.layernorm(mixed)), dim=-1).numpy()


@torch.no_grad()
def class_value_path(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Unit vectors (b, n, e) of a CLIPModel: identity attention in the last layer, residual and MLP kept."""
    clip = towers_of(model)
    vision: Any = clip.vision_model
    hidden, layer = torch.tensor(vision_states(model, pixels)[-3]), vision.encoder.layers[-1]
    hidden = hidden + layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(hidden)))
    hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    patches = clip.visual_projection(vision.post_layernorm(hidden))[:, 1:]
    return nn.functional.normalize(patches, dim=-1).numpy()
