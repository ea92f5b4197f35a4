"""PyTorch twins of spatial CLIPs: transformers' own classes that also give dense features, without JAX.

One self-contained file, `modeling_spatial_clip.py` in exported folders. It needs torch and transformers:

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)  # a folder, or a repository of the hub
    features = model.get_dense_features(pixel_values)  # (b, h, w, e), unit vectors in text space
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import cached_file

MODULE = "modeling_spatial_clip"
DESCRIPTION, WEIGHTS, SETTINGS = "adapter.json", "adapter.safetensors", "settings.json"
PREFIX = "spatial_adapter."  # of the adapter's keys in a state dict
ADAPTER, TRAINING_FREE = "adapter", "clearclip"
NACLIP_SIGMA = 5.0  # patches
# Which of from_pretrained's arguments say where the files are.
PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

Grid = tuple[Any, Any]  # whole numbers, or symbols for them while a graph is exported
Layer = Any  # an encoder layer of CLIP or SigLIP; only its weights are used, since its call differs between versions


class SpatialAdapter(nn.Module):
    """The adapter's weights: K encoder layers and, for the copy variant, a post-norm of its own.

    ring: width in patches of the blank ring around the picture that the adapter's map is read from.
    """

    def __init__(self, variant: str, blocks: int, readout: str, vision: Any, ring: int = 0):
        super().__init__()
        self.variant, self.readout, self.ring = variant, readout, ring
        layer, norm = type(vision.encoder.layers[0]), vision.post_layernorm
        self.layers = nn.ModuleList(layer(vision.config) for _ in range(blocks))
        if variant == "copy":
            self.post_layernorm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)


class DenseFeatures:
    """What a class of transformers gains: read-outs of its last layer and, where there is one, the trained adapter."""

    config: Any
    position_resize = "huggingface"  # where the configuration does not say it

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        self.spatial_adapter: Any = None
        self.adapter_files: dict[str, Any] = {}  # what the JSON files beside the adapter's weights say

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As the class's own; adapter.json and adapter.safetensors beside the weights are read where they are."""
        place = {name: kwargs[name] for name in PLACE if kwargs.get(name) is not None}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        found = {name: _found(pretrained_model_name_or_path, name, place) for name in (DESCRIPTION, SETTINGS, WEIGHTS)}
        files = {name: Path(file) for name, file in found.items() if file}
        if DESCRIPTION in files and WEIGHTS not in files:
            raise FileNotFoundError(f"{pretrained_model_name_or_path} has {DESCRIPTION}, but no {WEIGHTS}.")
        if DESCRIPTION in files:
            weights = load_file(files.pop(WEIGHTS))
            model.adapter_files = {name: json.loads(file.read_text("utf-8")) for name, file in files.items()}
            model.attach(weights)
        return loaded

    def attach(self, weights: dict[str, Tensor]) -> None:
        """Put the adapter of `adapter_files` beside the tower, on its device and in its type."""
        like = self.vision.post_layernorm.weight
        with torch.device("meta"):  # no weights are drawn only to be replaced
            self.spatial_adapter = SpatialAdapter(**self.adapter_files[DESCRIPTION]["adapter"], vision=self.vision)
        placed = {name: tensor.to(like.device, like.dtype) for name, tensor in weights.items()}
        self.spatial_adapter.load_state_dict(placed, assign=True)
        self.spatial_adapter.eval()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As the class's own, which loads the folder too; the adapter and this file are written beside."""
        given = kwargs.pop("state_dict", None)
        weights = self.state_dict() if given is None else given  # type: ignore[attr-defined]
        if (args or [kwargs.get("is_main_process", True)])[0]:
            self.save_adapter(Path(save_directory), weights)
        self.config.auto_map = {"AutoModel": f"{MODULE}.{type(self).__name__}"}
        own = {key: tensor for key, tensor in weights.items() if not key.startswith(PREFIX)}
        super().save_pretrained(save_directory, *args, state_dict=own, **kwargs)  # type: ignore[misc]

    def save_adapter(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """This file and, where there is one, the adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        adapter = {key.removeprefix(PREFIX): tensor for key, tensor in weights.items() if key.startswith(PREFIX)}
        if adapter:
            save_file({key: tensor.contiguous() for key, tensor in adapter.items()}, folder / WEIGHTS, {"format": "pt"})
        for name, content in self.adapter_files.items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if Path(__file__).resolve() != (folder / f"{MODULE}.py").resolve():
            shutil.copyfile(__file__, folder / f"{MODULE}.py")

    def get_dense_features(self, pixel_values: Tensor, readout: str | None = None) -> Tensor:
        """Unit vectors (b, h, w, e) in text space for normalised pixels (b, 3, H, W), H and W whole patches.

        readout: "adapter", or one of LAST_BLOCKS, which need no training; by default the adapter's where there is one,
        else "clearclip". fp32.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            shape = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values must be normalised pixels (b, 3, H, W), not patches; got {shape}.")
        size, patch = tuple(pixel_values.shape[-2:]), self.vision.embeddings.patch_size
        if min(size) < patch or size[0] % patch or size[1] % patch:
            raise ValueError(f"Picture size {size} is no multiple of the patch size {patch}: resize or crop.")
        return self.read(pixel_values, self.readout(readout))

    def get_phrase_features(self, input_ids: Tensor) -> Tensor:
        """Unit vectors (k, e) of texts, filled up by the tokenizer (padding="max_length"); fp32."""
        pooled = self.text_model(input_ids=input_ids).pooler_output  # type: ignore[attr-defined]
        return functional.normalize(getattr(self, "text_projection", nn.Identity())(pooled).float(), dim=-1)

    def readout(self, name: str | None = None) -> str:
        """The read-out of that name, or the default one; ValueError if there is none."""
        default = TRAINING_FREE if self.spatial_adapter is None else ADAPTER
        names = sorted({*LAST_BLOCKS, default})
        if name is not None and name not in names:
            raise ValueError(f"Unknown read-out {name!r}. Valid names: {', '.join(names)}.")
        return name or default

    def read(self, pixel_values: Tensor, readout: str) -> Tensor:
        """`get_dense_features` without its checks, so that sizes may be unknown, as in an exported graph."""
        layers, added, norm, last = self.branch(readout)
        ring = self.spatial_adapter.ring if readout == ADAPTER else 0
        if ring:
            pixel_values = functional.pad(pixel_values, [ring * self.vision.embeddings.patch_size] * 4)
        tokens, grid = self.embed(pixel_values)
        for layer in layers[:-1]:
            tokens = plain(layer, tokens, grid)
        tokens = LAST_BLOCKS[last](layers[-1], tokens, grid)
        for layer in added:
            tokens = plain(layer, tokens, grid)
        patches = self.to_text_space(norm(tokens)[:, self.prefix :])
        dense = functional.normalize(patches.float(), dim=-1).unflatten(1, grid)
        return dense[:, ring : grid[0] - ring, ring : grid[1] - ring] if ring else dense

    @property
    def vision(self) -> Any:
        """The vision tower, which is the model itself where there is nothing else."""
        return getattr(self, "vision_model", self)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token, if there is one."""
        return int(hasattr(self.vision.embeddings, "class_embedding"))

    def branch(self, readout: str) -> tuple[list[Layer], list[Layer], nn.Module, str]:
        """(layers up to the one that is read in another way, layers behind it, post-norm, that way's name)."""
        vision, adapter = self.vision, self.spatial_adapter
        layers = list(vision.encoder.layers)
        if readout != ADAPTER:
            return layers, [], vision.post_layernorm, readout
        if adapter.variant == "residual":
            return layers, list(adapter.layers), vision.post_layernorm, adapter.readout
        kept = layers[: len(layers) - len(adapter.layers)]
        return kept + list(adapter.layers), [], adapter.post_layernorm, adapter.readout

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """(tokens for the first layer, grid), the position table resized to the picture's patches."""
        embeddings, config = self.vision.embeddings, self.vision.config
        tokens, grid = embed_patches(embeddings.patch_embedding, pixel_values, embeddings.patch_size)
        if self.prefix:
            tokens = torch.cat([embeddings.class_embedding.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        method = getattr(config, "position_resize", self.position_resize)
        tokens = tokens + resize_positions(embeddings.position_embedding.weight, grid, method, self.prefix)
        return getattr(self.vision, "pre_layrnorm", nn.Identity())(tokens), grid

    def to_text_space(self, patches: Tensor) -> Tensor:
        """Post-normed patches in text space: each by itself through SigLIP's pooling head, or CLIP's projection."""
        head = getattr(self.vision, "head", None)
        if head is not None:
            part = head.attention
            values = functional.linear(patches, part.in_proj_weight.chunk(3)[2], part.in_proj_bias.chunk(3)[2])
            mixed = part.out_proj(values)
            patches = mixed + head.mlp(head.layernorm(mixed))
        return getattr(self, "visual_projection", nn.Identity())(patches)


class SpatialClipModel(DenseFeatures, transformers.CLIPModel):
    """CLIPModel."""


class TowerAlone(DenseFeatures):
    """A vision tower whose class keeps it in `vision_model`, as files do, or in newer versions is the tower itself."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As of DenseFeatures; transformers takes the prefix off the names for its own classes alone."""
        owner: Any = cls
        place = {name: kwargs[name] for name in PLACE if kwargs.get(name) is not None}
        config = kwargs.get("config") or owner.config_class.from_pretrained(pretrained_model_name_or_path, **place)
        with torch.device("meta"):
            flat = not hasattr(owner(config), "vision_model")
        mapping = {"key_mapping": {r"^vision_model\.": ""}} if flat else {}
        return super().from_pretrained(pretrained_model_name_or_path, *args, **mapping, **kwargs)


class SpatialClipVisionModel(TowerAlone, transformers.CLIPVisionModel):
    """CLIPVisionModel."""


class SpatialClipVisionModelWithProjection(DenseFeatures, transformers.CLIPVisionModelWithProjection):
    """CLIPVisionModelWithProjection."""


class SpatialSiglipModel(DenseFeatures, transformers.SiglipModel):
    """SiglipModel."""


class SpatialSiglipVisionModel(TowerAlone, transformers.SiglipVisionModel):
    """SiglipVisionModel."""


if hasattr(transformers, "MetaClip2Model"):  # younger than the others

    class SpatialMetaClip2Model(DenseFeatures, transformers.MetaClip2Model):
        """MetaClip2Model."""


if hasattr(transformers, "Siglip2Model"):

    class SpatialSiglip2Model(DenseFeatures, transformers.Siglip2Model):
        """Siglip2Model (NaFlex)."""

        position_resize = "bilinear_antialias"

    class SpatialSiglip2VisionModel(TowerAlone, transformers.Siglip2VisionModel):
        """Siglip2VisionModel (NaFlex)."""

        position_resize = "bilinear_antialias"


def embed_patches(embedding: Any, pixel_values: Tensor, patch: int) -> tuple[Tensor, Grid]:
    """(tokens of patches, grid); NaFlex's embedding is a linear layer of patches that are cut out."""
    pixels = pixel_values.to(embedding.weight.dtype)
    if isinstance(embedding, nn.Linear):
        rows = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (b, 3, h, w, p, p)
        return embedding(rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)), (rows.shape[2], rows.shape[3])
    patches = embedding(pixels)
    return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


def _found(source: Any, name: str, place: dict[str, Any]) -> str | None:
    """The path of a file beside the weights, fetched where they are on the hub; None if there is none."""
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(source, name, **place, **missing)


def cubic(a: float) -> Callable[[Tensor], Tensor]:
    """The cubic convolution kernel of parameter `a`, of the distance."""

    def kernel(x: Tensor) -> Tensor:
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

    return kernel


def triangle(x: Tensor) -> Tensor:
    """The bilinear kernel, of the distance."""
    return (1 - x).clamp(min=0)


# How the position table is resized: the kernel, and whether it widens where the table shrinks.
RESIZES = {
    "huggingface": (cubic(-0.75), False),
    "open_clip": (cubic(-0.5), True),
    "bilinear": (triangle, False),
    "bilinear_antialias": (triangle, True),
}
REACH = 2  # rows that a kernel may look beyond the table's edge


def resize_positions(table: Tensor, grid: Grid, method: str, prefix: int) -> Tensor:
    """Position table (rows of a prefix, then a square grid) resized by two matrix products, which any graph holds."""
    side = math.isqrt(len(table) - prefix)
    rows, columns = (resize_weights(side, count, method, table.device) for count in grid)
    square = table[prefix:].float().unflatten(0, (side, side))
    resized = torch.einsum("ri,cj,ijd->rcd", rows, columns, square).flatten(0, 1)
    return torch.cat([table[:prefix], resized.to(table.dtype)])


def resize_weights(source: int, target: Any, method: str, device: Any = None) -> Tensor:
    """(target, source): how much each old place counts in each new one, as `torch.nn.functional.interpolate`."""
    kernel, antialias = RESIZES[method]
    options: dict[str, Any] = {"dtype": torch.float32, "device": device}
    numbers = torch.arange(target, **options)
    centres = (numbers + 0.5) * source / target - 0.5
    if antialias:
        places = torch.arange(source, **options)
        widened = (source / (numbers[-1] + 1)).clamp(min=1)  # a tensor: no graph holds a choice between numbers
        weights = kernel((places - centres[:, None]).abs() / widened)
        return weights / weights.sum(1, keepdim=True)
    weights = kernel((torch.arange(-REACH, source + REACH, **options) - centres[:, None]).abs())
    before, inside, after = weights.split([REACH, source, REACH], dim=1)  # the edge stands for what lies beyond it
    first, last = before.sum(1, keepdim=True), after.sum(1, keepdim=True)
    return inside + functional.pad(first, (0, source - 1)) + functional.pad(last, (source - 1, 0))


def plain(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """The layer as it was trained."""
    q, k, v = heads(layer, hidden)
    return feed_forward(layer, hidden + output(layer, attend(q, k, v)))


def value(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Identity attention, residual and MLP kept."""
    return feed_forward(layer, hidden + maskclip(layer, hidden, grid))


def maskclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Identity attention alone."""
    return output(layer, heads(layer, hidden)[2])


def sclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Sum of query-query and key-key attention, residual and MLP kept."""
    q, k, v = heads(layer, hidden)
    return feed_forward(layer, hidden + output(layer, attend(q, q, v) + attend(k, k, v)))


def clearclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Query-query attention alone."""
    q, _, v = heads(layer, hidden)
    return output(layer, attend(q, q, v))


def naclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Key-key attention with a Gaussian of the patches' distance, alone."""
    _, k, v = heads(layer, hidden)
    return output(layer, attend(k, k, v, neighbour_bias(grid, k)))


def cliptrase(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Sum of query-query, key-key and value-value attention, alone."""
    q, k, v = heads(layer, hidden)
    return output(layer, attend(q, q, v) + attend(k, k, v) + attend(v, v, v))


LAST_BLOCKS: dict[str, Callable[[Layer, Tensor, Grid], Tensor]] = {
    function.__name__: function for function in (plain, value, maskclip, sclip, clearclip, naclip, cliptrase)
}


def neighbour_bias(grid: Grid, like: Tensor) -> Tensor:
    """exp(-distance^2 / (2 sigma^2)) between patches; zero for the tokens before them."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": like.device}
    rows, columns = (torch.arange(count, **options) for count in grid)
    apart = [(line[:, None] - line).square() for line in (rows, columns)]
    squared = (apart[0][:, None, :, None] + apart[1][None, :, None, :]).flatten(2).flatten(0, 1)
    prefix = like.shape[2] - grid[0] * grid[1]
    return functional.pad(torch.exp(-squared / (2 * NACLIP_SIGMA**2)), (prefix, 0, prefix, 0)).to(like.dtype)


def heads(layer: Layer, hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values (b, heads, tokens, channels)."""
    attention, normal = layer.self_attn, layer.layer_norm1(hidden)
    shape = (attention.num_heads, -1)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [projection(normal).unflatten(-1, shape).transpose(1, 2) for projection in projections]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def output(layer: Layer, mixed: Tensor) -> Tensor:
    """Output projection of the heads' mixed values."""
    return layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))


def feed_forward(layer: Layer, hidden: Tensor) -> Tensor:
    """The layer's second half with its residual."""
    return hidden + layer.mlp(layer.layer_norm2(hidden))
