"""Runs the benchmark over all rows and writes what came out."""

import functools
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.evaluate.benchmark import (
    Settings,
    evaluate_row,
    relation_by_global_embedding,
    zero_shot_top1,
)
from spatial_clip_jax.evaluate.metrics import known
from spatial_clip_jax.evaluate.prompts import TEMPLATES, TextEncoder, make_text_bank
from spatial_clip_jax.evaluate.questions import ask
from spatial_clip_jax.evaluate.readings import BATCH_SIZE, Row
from spatial_clip_jax.evaluate.search import select_settings
from spatial_clip_jax.tasks.heatmap import GENERIC_PHRASES

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Benchmark:
    """What came out.

    `scores` are {row: {metric: fraction}}, `settings` those chosen for each row on validation, `baseline` the
    metrics of the first row's global embedding, which sees no dense map, `counts` the test judgements behind
    each metric.
    """

    scores: Scores
    settings: dict[str, Settings]
    baseline: dict[str, float]
    counts: dict[str, int]


def run_benchmark(
    rows: Sequence[Row],
    validation: Sequence[AnnotatedPicture],
    test: Sequence[AnnotatedPicture],
    singles: Sequence[AnnotatedPicture],
    encode_text: TextEncoder,
    pairs: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    generic: Sequence[str] = GENERIC_PHRASES,
    batch_size: int = BATCH_SIZE,
    unsupervised: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Benchmark:
    """Chooses each row's settings on `validation` alone and measures it on `test`.

    `singles` are the one-object pictures of zero-shot classification, `pairs` all phrases ranked against each
    other; `encode_text` gives (k, e) embeddings of texts; `unsupervised` asks for `unsupervised_miou` too, which
    takes seconds to minutes a row; `progress` hears a line at a time. ValueError unless every row has a name of its
    own.
    """
    _check_names([row.name for row in rows])
    chosen_on, asked = ask(validation), ask(test)
    bank = make_text_bank(encode_text, pairs, [*chosen_on.phrases(), *asked.phrases()], templates, generic)
    settings: dict[str, Settings] = {}
    scores: Scores = {}
    for row in rows:
        progress(f"{row.name}: choosing settings on {len(validation)} validation pictures")
        settings[row.name] = select_settings(row, chosen_on, bank, batch_size)
        progress(f"{row.name}: measuring on {len(test)} test pictures with {settings[row.name]}")
        scores[row.name] = evaluate_row(row, asked, bank, settings[row.name], batch_size, unsupervised)
    encoders = {row.embed_image for row in rows}
    classified = {encoder: zero_shot_top1(encoder, singles, bank, batch_size) for encoder in encoders}
    for row in rows:
        scores[row.name] |= classified[row.embed_image]
    related = relation_by_global_embedding(rows[0].embed_image, encode_text, asked, templates, batch_size)
    baseline = known({"relation_accuracy": related}) | classified[rows[0].embed_image]
    counts = asked.counts() | {"zero_shot_top1": len(singles)}
    counts |= {"unsupervised_miou": len(test)} if unsupervised else {}
    return Benchmark(scores, settings, baseline, counts)


def _check_names(names: list[str]) -> None:
    if not names or len(set(names)) != len(names):
        raise ValueError(f"expected one or more rows, each with a name of its own; got {names}")


def environment() -> dict[str, Any]:
    """Where and with what this ran; `commit` only inside a git checkout."""
    device = jax.devices()[0]
    found = {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "platform": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.device_count(),
        "cpu_count": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


@functools.cache
def _commit() -> str:
    """Of the code that runs, as near as can be told: asked once, for the checkout may move on under a long run."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write_metrics(path: Path, benchmark: Benchmark, train: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Writes metrics.json, whole or not at all.

    Keys: `benchmark` {row: {metric: fraction}}, `train`, `environment`, and `protocol` with the settings, the
    baseline and the counts. ValueError if a number is NaN or infinite.
    """
    content = {
        "benchmark": benchmark.scores,
        "train": dict(train),
        "environment": dict(environment),
        "protocol": {
            "settings": {row: asdict(chosen) for row, chosen in benchmark.settings.items()},
            "baseline": benchmark.baseline,
            "counts": benchmark.counts,
        },
    }
    write_whole(path, json.dumps(content, indent=2, allow_nan=False).encode())
