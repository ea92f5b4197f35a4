"""big_vision's SigLIP (Zhai et al. 2023) in NumPy at double precision, with its names for the weights.

Neither class token nor pre-norm; the picture's embedding is attention pooling by one learned probe, the text's is the
last token of a tower without causal mask. `weights` is what the .npz holds, scanned (all blocks of a tower in one
array) or not.
"""

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Weights = dict[str, NDArray]


def layer_norm(x: NDArray, p: Weights, name: str, eps: float = 1e-6) -> NDArray:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred / scale * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu_tanh(x: NDArray) -> NDArray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(x: NDArray, p: Weights, name: str) -> NDArray:
    hidden = gelu_tanh(x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"])
    return hidden @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]


def project(x: NDArray, p: Weights, name: str) -> NDArray:
    """(b, t, d) -> (b, t, heads, c)."""
    return np.einsum("btd,dhc->bthc", x, p[f"{name}/kernel"]) + p[f"{name}/bias"]


def output(mixed: NDArray, p: Weights, name: str) -> NDArray:
    return np.einsum("bthc,hcd->btd", mixed, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]


def attend(queries: NDArray, keys: NDArray, p: Weights, name: str) -> NDArray:
    q, k, v = project(queries, p, f"{name}/query"), project(keys, p, f"{name}/key"), project(keys, p, f"{name}/value")
    logits = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return output(np.einsum("bhqk,bkhc->bqhc", weights, v), p, name)


def block(x: NDArray, p: Weights, name: str, value_path: bool = False) -> NDArray:
    """One encoder block; with `value_path` every token sees itself alone."""
    y, heads = layer_norm(x, p, f"{name}/LayerNorm_0"), f"{name}/MultiHeadDotProductAttention_0"
    x = x + (output(project(y, p, f"{heads}/value"), p, heads) if value_path else attend(y, y, p, heads))
    return x + mlp(layer_norm(x, p, f"{name}/LayerNorm_1"), p, f"{name}/MlpBlock_0")


def unscanned(weights: Weights) -> Weights:
    """One entry a block, in double precision."""
    found = {}
    for name, value in weights.items():
        pieces = enumerate(value) if "/encoderblock/" in name else [(None, value)]
        for index, piece in pieces:
            found[name.replace("/encoderblock/", f"/encoderblock_{index}/")] = np.asarray(piece, np.float64)
    return found


class BigVision:
    """The two towers; `resize` is how a position table meets another grid."""

    def __init__(self, weights: Weights, resize: str = "corners"):
        self.p, self.resize = (
            unscanned({name.removeprefix("params/"): value for name, value in weights.items()}),
            resize,
        )
        self.layers = len([name for name in self.p if name.startswith("img/") and name.endswith("LayerNorm_1/scale")])
        self.text_layers = len([name for name in self.p if name.startswith("txt/") and "LayerNorm_1/scale" in name])

    def embed(self, pixels: NDArray) -> tuple[NDArray, tuple[int, int]]:
        kernel = self.p["img/embedding/kernel"]
        size = kernel.shape[0]
        grid = pixels.shape[1] // size, pixels.shape[2] // size
        patches = pixels.reshape(len(pixels), grid[0], size, grid[1], size, 3)
        tokens = np.einsum("brycxk,yxkd->brcd", patches, kernel).reshape(len(pixels), grid[0] * grid[1], -1)
        return tokens + self.p["img/embedding/bias"] + self.positions(grid), grid

    def positions(self, grid: tuple[int, int]) -> NDArray:
        table = self.p["img/pos_embedding"][0]
        side = int(len(table) ** 0.5)
        square = table.reshape(side, side, -1)
        factors = (grid[0] / side, grid[1] / side, 1)
        zoomed = scipy.ndimage.zoom(square, factors, order=1, grid_mode=self.resize == "centres", mode="nearest")
        return zoomed.reshape(grid[0] * grid[1], -1)

    def encode_image(self, pixels: NDArray) -> list[NDArray]:
        """Input of the first block, every block's output, then the embedding."""
        tokens, _ = self.embed(pixels.astype(np.float64))
        states = [tokens]
        for index in range(self.layers):
            states.append(block(states[-1], self.p, f"img/Transformer/encoderblock_{index}"))
        encoded = layer_norm(states[-1], self.p, "img/Transformer/encoder_norm")
        probe = np.repeat(self.p["img/MAPHead_0/probe"], len(pixels), axis=0)
        pooled = attend(probe, encoded, self.p, "img/MAPHead_0/MultiHeadDotProductAttention_0")
        return [*states, self.head(pooled)[:, 0]]

    def head(self, x: NDArray) -> NDArray:
        """What follows the attention in the pooling head."""
        return x + mlp(layer_norm(x, self.p, "img/MAPHead_0/LayerNorm_0"), self.p, "img/MAPHead_0/MlpBlock_0")

    def dense(self, pixels: NDArray) -> NDArray:
        """Value path of the last block and of the pooling head: every token as if it were the only one."""
        tokens, grid = self.embed(pixels.astype(np.float64))
        for index in range(self.layers):
            last = index == self.layers - 1
            tokens = block(tokens, self.p, f"img/Transformer/encoderblock_{index}", value_path=last)
        tokens = layer_norm(tokens, self.p, "img/Transformer/encoder_norm")
        pool = "img/MAPHead_0/MultiHeadDotProductAttention_0"
        dense = self.head(output(project(tokens, self.p, f"{pool}/value"), self.p, pool))
        return (dense / np.linalg.norm(dense, axis=-1, keepdims=True)).reshape(len(pixels), *grid, -1)

    def encode_text(self, ids: NDArray) -> NDArray:
        x = self.p["txt/Embed_0/embedding"][ids] + self.p["txt/pos_embedding"][0]
        for index in range(self.text_layers):
            x = block(x, self.p, f"txt/Encoder_0/encoderblock_{index}")
        x = layer_norm(x, self.p, "txt/Encoder_0/encoder_norm")[:, -1]
        return x @ self.p["txt/head/kernel"] + self.p["txt/head/bias"]


WIDTH, HEADS, MLP, LAYERS, PATCH, SIDE, VOCABULARY, CONTEXT = 48, 3, 88, 3, 8, 4, 519, 12
TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS = 32, 2, 2


def random_big_vision(seed: int, scanned: bool = False, prefix: str = "params/") -> Weights:
    """Every weight of a small SigLIP drawn, in fp32; the embeddings small, so that the norms' epsilon matters."""
    draw = np.random.default_rng(seed).standard_normal
    norm = {"scale": lambda d: 1 + 0.2 * draw(d), "bias": lambda d: 0.1 * draw(d)}
    weights: Weights = {"t": 2.3 + 0.1 * draw(1), "b": -9 + draw(1)}
    towers = {"img": ("Transformer", WIDTH, HEADS, LAYERS), "txt": ("Encoder_0", TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS)}

    def attention(name: str, d: int, heads: int, stack: tuple[int, ...]) -> None:
        for part in ("query", "key", "value"):
            weights[f"{name}/{part}/kernel"] = 0.15 * draw((*stack, d, heads, d // heads))
            weights[f"{name}/{part}/bias"] = 0.1 * draw((*stack, heads, d // heads))
        weights[f"{name}/out/kernel"] = 0.15 * draw((*stack, heads, d // heads, d))
        weights[f"{name}/out/bias"] = 0.1 * draw((*stack, d))

    def dense(name: str, inputs: int, outputs: int, stack: tuple[int, ...]) -> None:
        weights[f"{name}/kernel"] = 0.15 * draw((*stack, inputs, outputs))
        weights[f"{name}/bias"] = 0.1 * draw((*stack, outputs))

    def norms(name: str, d: int, stack: tuple[int, ...]) -> None:
        weights.update({f"{name}/{part}": make((*stack, d)) for part, make in norm.items()})

    for tower, (encoder, d, heads, layers) in towers.items():
        for index in [None] if scanned else range(layers):
            stack = (layers,) if scanned else ()
            name = f"{tower}/{encoder}/encoderblock" + ("" if scanned else f"_{index}")
            attention(f"{name}/MultiHeadDotProductAttention_0", d, heads, stack)
            dense(f"{name}/MlpBlock_0/Dense_0", d, MLP, stack)
            dense(f"{name}/MlpBlock_0/Dense_1", MLP, d, stack)
            norms(f"{name}/LayerNorm_0", d, stack)
            norms(f"{name}/LayerNorm_1", d, stack)
        norms(f"{tower}/{encoder}/encoder_norm", d, ())
    weights["img/embedding/kernel"] = 0.02 * draw((PATCH, PATCH, 3, WIDTH))
    weights["img/embedding/bias"] = 0.02 * draw(WIDTH)
    weights["img/pos_embedding"] = 0.02 * draw((1, SIDE**2, WIDTH))
    weights["img/MAPHead_0/probe"] = draw((1, 1, WIDTH))
    attention("img/MAPHead_0/MultiHeadDotProductAttention_0", WIDTH, HEADS, ())
    dense("img/MAPHead_0/MlpBlock_0/Dense_0", WIDTH, MLP, ())
    dense("img/MAPHead_0/MlpBlock_0/Dense_1", MLP, WIDTH, ())
    norms("img/MAPHead_0/LayerNorm_0", WIDTH, ())
    weights["txt/Embed_0/embedding"] = 0.02 * draw((VOCABULARY, TEXT_WIDTH))
    weights["txt/pos_embedding"] = 0.02 * draw((1, CONTEXT, TEXT_WIDTH))
    dense("txt/head", TEXT_WIDTH, WIDTH, ())
    return {prefix + name: value.astype(np.float32) for name, value in weights.items()}
