import time

import numpy as np
import pytest

from spatial_clip_jax.evaluate.speed import inference_ratio

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


def test_the_ratio_is_of_medians_taken_in_turns():
    """An outlier of one repetition does not count, and the turns alternate."""
    calls: list[str] = []

    def waits(name: str, seconds: float, outlier: float):
        def run(images):
            calls.append(name)
            time.sleep(outlier if len(calls) in (3, 4) else seconds)
            return images

        return run

    found = inference_ratio(waits("one", 0.04, 0.2), waits("other", 0.02, 0.3), IMAGES, 3)
    assert calls == ["one", "other"] * 4
    assert 1.2 < found < 3.2


def test_at_least_one_repetition():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        inference_ratio(np.asarray, np.asarray, IMAGES, 0)
