"""The read-outs of several blocks, written again from the published formulas: NumPy, fp64, picture by picture.

Every function takes the weights as nested dicts, one picture's hidden states (layers + 1 arrays (t, d)) and the grid;
keywords are the published constants, so that a test can also ask for other ones.
"""

import math
from typing import Any

import numpy as np

HEADS, EPS = 2, 1e-5
Array = np.ndarray
Weights = dict[str, Any]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(w: Weights, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * w["scale"] + w["bias"]


def linear(w: Weights, x: Array) -> Array:
    return x @ w["kernel"] + w.get("bias", 0.0)


def qkv(block: Weights, x: Array) -> tuple[Array, ...]:
    """Each (heads, t, c)."""
    y = norm(block["norm1"], x)
    parts = (linear(block["attention"][name], y) for name in "qkv")
    return tuple(part.reshape(len(x), HEADS, -1).transpose(1, 0, 2) for part in parts)


def out(block: Weights, mixed: Array) -> Array:
    return linear(block["attention"]["out"], mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1))


def attend(a: Array, b: Array) -> Array:
    return softmax(a @ b.transpose(0, 2, 1) / math.sqrt(a.shape[-1]))


def text_space(w: Weights, patches: Array, grid: tuple[int, int]) -> Array:
    """(h, w, e), unit length."""
    x = linear(w["projection"], norm(w["post_norm"], patches))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(*grid, -1)


def blocks_of(w: Weights) -> list[Weights]:
    return [w["blocks"][str(index)] for index in range(len(w["blocks"]))]


def clip_surgery(w: Weights, hidden: list[Array], grid: tuple[int, int], *, last: int = 3, which: int = 2) -> Array:
    blocks = blocks_of(w)
    path = hidden[len(blocks) - last]
    for index in range(len(blocks) - last, len(blocks)):
        parts = qkv(blocks[index], hidden[index])
        path = path + out(blocks[index], attend(parts[which], parts[which]) @ parts[2])
    return text_space(w, path[-grid[0] * grid[1] :], grid)


def gem(
    w: Weights, hidden: list[Array], grid: tuple[int, int], *, last: int = 3, times: int = 1, of: str = "qkv"
) -> Array:
    blocks = blocks_of(w)
    path = hidden[len(blocks) - last]
    for index in range(len(blocks) - last, len(blocks)):
        block, parts = blocks[index], dict(zip("qkv", qkv(blocks[index], hidden[index]), strict=True))
        y, mixed = norm(block["norm1"], hidden[index]), []
        tau = sum(math.sqrt(token @ token) for token in y) / len(y) / math.sqrt(y.shape[-1] / HEADS)
        for name in of:
            z = parts[name] / np.linalg.norm(parts[name], axis=-1, keepdims=True)
            for _ in range(times):
                z = softmax(tau * z @ z.transpose(0, 2, 1)) @ z
                z = z / np.linalg.norm(z, axis=-1, keepdims=True)
            mixed.append(softmax(tau * z @ z.transpose(0, 2, 1)) @ parts["v"])
        path = path + out(block, sum(mixed) / len(mixed))
    return text_space(w, path[-grid[0] * grid[1] :], grid)


def resclip(
    w: Weights, hidden: list[Array], grid: tuple[int, int], *, middle=(3, 4, 5), share=0.4, factor=2.0, sigma=5.0
) -> Array:
    blocks, n = blocks_of(w), grid[0] * grid[1]
    _, k, v = qkv(blocks[-1], hidden[-2])
    prefix, bias = k.shape[1] - n, np.zeros((k.shape[1], k.shape[1]))
    for i, j, m, o in np.ndindex(*grid, *grid):
        near = math.exp(-((i - m) ** 2 + (j - o) ** 2) / (2 * sigma**2))
        bias[prefix + i * grid[1] + j, prefix + m * grid[1] + o] = near
    own = softmax(k @ k.transpose(0, 2, 1) / math.sqrt(k.shape[-1]) + bias)
    cross = np.zeros_like(bias)
    for number in middle:
        q_, k_, _ = qkv(blocks[number - 1], hidden[number - 1])
        for head in attend(q_, k_):
            cross += head / HEADS / len(middle)
    mixed = factor * ((1 - share) * own + share * cross) @ v
    return text_space(w, out(blocks[-1], mixed)[prefix:], grid)


def lof(points: Array, k: int) -> Array:
    """Local outlier factors, as Breunig et al. define them."""
    n = len(points)
    distance = [[math.dist(a, b) for b in points] for a in points]
    near = [sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])[:k] for i in range(n)]
    reach = [[max(distance[j][near[j][-1]], distance[i][j]) for j in near[i]] for i in range(n)]
    density = [k / sum(row) for row in reach]
    return np.array([sum(density[j] for j in near[i]) / k / density[i] for i in range(n)])


def repair(x: Array, odd: set[int], grid: tuple[int, int]) -> Array:
    result = x.copy()
    for place in odd:
        i, j = divmod(place, grid[1])
        around = [(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
        inside = [r * grid[1] + c for r, c in around if 0 <= r < grid[0] and 0 <= c < grid[1]]
        kept = [x[index] for index in inside if index not in odd]
        if kept:
            result[place] = sum(kept) / len(kept)
    return result


def cosines(x: Array) -> Array:
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit @ unit.T


def group(alike: Array, x: Array, threshold: float) -> Array:
    result = np.zeros_like(x)
    for i, row in enumerate(alike):
        members = [j for j in range(len(x)) if row[j] >= threshold]
        result[i] = sum(row[j] * x[j] for j in members) / sum(row[j] for j in members)
    return result


def sc_clip(
    w: Weights,
    hidden: list[Array],
    grid: tuple[int, int],
    *,
    early: int = 2,
    middle: int = 5,
    late: int = 5,
    part: float = 0.05,
    share: float = 0.3,
    before: float = 0.4,
    after: float = 0.4,
    sharp: float = 3.0,
    levels: float = 1.0,
    class_token: bool = True,
) -> Array:
    n, block = grid[0] * grid[1], blocks_of(w)[-1]
    patches = [x[-n:] for x in hidden]
    factors = lof(patches[-2], min(30, n - 1))
    odd = set(np.argsort(-factors)[: max(1, int(part * n)) if part else 0].tolist())
    alike = cosines(repair(patches[middle], odd, grid))
    offset = alike - alike.mean()
    likely = softmax(np.where(offset > 0, sharp * offset, -np.inf))

    def read(x: Array) -> Array:
        _, k, v = qkv(block, x)
        return out(block, (likely + attend(k, k)) / 2 @ v)

    deep = read(group(alike, repair(patches[-2], odd, grid), before))
    if class_token:
        deep = deep + share * hidden[-2][0]
    deep = group(cosines(patches[early]), deep, after)
    return text_space(w, deep + levels * read(sum(patches[early : late + 1])), grid)
