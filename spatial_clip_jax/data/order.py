"""The order of a stream: one endless sequence of record numbers, by index arithmetic alone."""

from itertools import pairwise

import grain
import numpy as np

from spatial_clip_jax.data.mixture import MixedSource
from spatial_clip_jax.data.source import Source


def record_order(source: Source, seed: int) -> grain.MapDataset:
    """Record numbers, all of them once an epoch, in an order of its own each epoch.

    Of a mixture, each part has epochs of its own, and the parts take turns as their weights say, to a percent of the
    least weight: among any n pictures a part's number is off by one for each other part, not by sqrt(n).
    """
    if not isinstance(source, MixedSource):
        return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    seeds = np.random.SeedSequence(seed).generate_state(len(source.weights)).tolist()
    parts = [
        grain.MapDataset.range(start, stop).shuffle(seed=own).repeat()
        for own, (start, stop) in zip(seeds, pairwise(source.starts), strict=True)
    ]
    return grain.MapDataset.mix(parts, source.weights)
