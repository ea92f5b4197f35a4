"""`scenes`: the procedural picture world as a TensorFlow Datasets builder, written as ArrayRecord without TensorFlow.

Datasheet: README.md beside this file.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from spatial_clip_jax.data.scenes.build import records
from spatial_clip_jax.data.scenes.records import World, WorldConfig
from spatial_clip_jax.data.scenes.splits import SPLITS

SIDE = 128
SCALES = (1.0, 1.5, 2.0)


class Scenes(World):
    """Scenes of 1 to 5 objects with exact masks, boxes, parts, attributes and relations."""

    name = "scenes"
    VERSION = tfds.core.Version("1.0.1")
    RELEASE_NOTES = {
        "1.0.0": "First release: 16 classes, 8 colours, 4 textures, 3 sizes, 16 held-out pairs.",
        "1.0.1": "The heart has no hole, the star no seams; pictures drawn smaller than 128 pixels have less grain.",
    }
    BUILDER_CONFIGS = [
        WorldConfig(
            name="quickstart",
            description="Enough to adapt and measure the bundled model on two cores.",
            side=SIDE,
            sizes={"train": 512, "unlabeled": 1536, "validation": 128, "test": 256, "test_single": 1024},
            scales=SCALES,
        ),
        WorldConfig(
            name="full",
            description="For longer adaptation and tighter error bars.",
            side=SIDE,
            sizes={"train": 16384, "unlabeled": 65536, "validation": 512, "test": 2048, "test_single": 4096},
            scales=SCALES,
        ),
        WorldConfig(
            name="mini",
            description="For tests: every split in seconds.",
            side=SIDE,
            sizes={"train": 8, "unlabeled": 32, "validation": 8, "test": 8, "test_single": 8},
            scales=SCALES,
        ),
    ]

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        return records(SPLITS[split], count, self.builder_config.side)
