"""How two towers are compared: every intermediate, relative to the scale of the activations."""

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-5  # of the largest absolute value of what is compared


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value of theirs."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max())


def worst(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest `difference` of two lists of arrays."""
    return max(difference(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True))
