"""Measures the parity table: published geometries with random weights, fp32, here against their reference.

python -m tests.parity [--only=ViT-B/16] > docs/parity.md
"""

import argparse
import gc
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from spatial_clip_jax.convert.load import load_clip
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import split_params
from spatial_clip_jax.models.readout import dense_map
from tests.convert.parity import TOLERANCE, difference
from tests.parity.cases import CASES, Case

COLUMNS = ("family", "geometry", "parameters", "size", "every block", "image embedding", "dense map", "text embedding")
HEAD = """# Parity with the reference implementations

Largest absolute difference over the largest absolute value of what is compared (each block's output by itself), fp32,
random weights. "dense map": the value path, as unit vectors.
"""


def main() -> None:
    """Prints the table, one row a geometry and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="a geometry's name; all by default")
    chosen = [case for case in CASES if parser.parse_args().only in (None, case.geometry)]
    where = f"{date.today()}, {platform.machine()}, jax {jax.__version__}, torch {torch.__version__}"
    print(f"{HEAD}\n`python -m tests.parity`, {where}.\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    largest = 0.0
    for case in chosen:
        for row in rows(case):
            print("| " + " | ".join(row) + " |", flush=True)
            largest = max(largest, *(float(value) for value in row[4:] if value != "-"))
        gc.collect()
    if not chosen or largest > TOLERANCE:
        sys.exit(f"{len(chosen)} geometries measured, largest difference {largest:.1e}: more than {TOLERANCE:.0e}")


def rows(case: Case) -> list[list[str]]:
    """The case's rows, one a size."""
    print(case.geometry, file=sys.stderr)
    model = case.make()
    with tempfile.TemporaryDirectory() as folder:
        clip = load_clip(case.save(model, Path(folder)), spec=case.spec)
    count = f"{sum(leaf.size for leaf in jax.tree.leaves(split_params(clip)[1])):,}"
    text = _text(case, model, clip)
    return [
        [case.family, case.geometry, count, f"{size[0]} x {size[1]}", *_vision(case, model, clip, size), text]
        for size in case.sizes
    ]


def _vision(case: Case, model: object, clip: Clip, size: tuple[int, int]) -> list[str]:
    pixels = np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)
    output = clip.vision(jnp.asarray(pixels))
    *blocks, embedding = case.states(model, pixels)
    hidden = [np.asarray(state) for state in output.hidden[-len(blocks) :]]
    theirs = case.dense(model, pixels)
    dense = np.asarray(dense_map(clip.vision, output, case.readout)).reshape(theirs.shape)
    worst = max(difference(ours, block) for ours, block in zip(hidden, blocks, strict=True))
    values = (worst, difference(np.asarray(output.embedding), embedding), difference(dense, theirs))
    return [f"{value:.1e}" for value in values]


def _text(case: Case, model: object, clip: Clip) -> str:
    if case.text is None or clip.spec.text is None:
        return "-"
    spec = clip.spec.text
    ids = np.random.default_rng(0).integers(3, spec.vocab_size - 2, (2, spec.context_length)).astype(np.int32)
    ids[:, -1] = spec.eos_token_id
    return f"{difference(np.asarray(clip.text(jnp.asarray(ids))), case.text(model, ids)):.1e}"


if __name__ == "__main__":
    main()
