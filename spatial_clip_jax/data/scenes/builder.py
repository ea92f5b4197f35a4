"""`scenes`: the procedural picture world as a TensorFlow Datasets builder, written as ArrayRecord without TensorFlow.

Datasheet: README.md beside this file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.build import records
from spatial_clip_jax.data.scenes.splits import SPLITS

RELATIONS = ("left of", "right of", "above", "below", "bigger than", "smaller than", "inside", "around")


@dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """Side of the pictures in pixels and how many of each split are written."""

    side: int = 128
    sizes: dict[str, int] | None = None


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Scenes of 1 to 5 objects with exact masks, boxes, parts, attributes and relations."""

    name = "scenes"
    VERSION = tfds.core.Version("1.0.1")
    RELEASE_NOTES = {
        "1.0.0": "First release: 16 classes, 8 colours, 4 textures, 3 sizes, 16 held-out pairs.",
        "1.0.1": "The heart has no hole, the star no seams; pictures drawn smaller than 128 pixels have less grain.",
    }
    BUILDER_CONFIGS = [
        ScenesConfig(
            name="quickstart",
            description="Enough to adapt and measure the bundled model on two cores.",
            sizes={"train": 512, "unlabeled": 1536, "validation": 128, "test": 256, "test_single": 1024},
        ),
        ScenesConfig(
            name="full",
            description="For longer adaptation and tighter error bars.",
            sizes={"train": 16384, "unlabeled": 65536, "validation": 512, "test": 2048, "test_single": 4096},
        ),
        ScenesConfig(
            name="mini",
            description="For tests: every split in seconds.",
            sizes={"train": 8, "unlabeled": 32, "validation": 8, "test": 8, "test_single": 8},
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        colour = tfds.features.ClassLabel(names=list(v.COLOUR_NAMES))
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "caption": tfds.features.Text(),
            "instances": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "parts": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "objects": tfds.features.Sequence(
                {
                    "name": tfds.features.ClassLabel(names=list(v.CLASS_NAMES)),
                    "colour": colour,
                    "texture": tfds.features.ClassLabel(names=list(v.TEXTURES)),
                    "size": tfds.features.ClassLabel(names=list(v.SIZE_NAMES)),
                    "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "seen": np.bool_,
                }
            ),
            "object_parts": tfds.features.Sequence(
                {"object": np.int32, "id": np.int32, "name": tfds.features.Text(), "colour": colour}
            ),
            "relations": tfds.features.Sequence(
                {"subject": np.int32, "relation": tfds.features.ClassLabel(names=list(RELATIONS)), "object": np.int32}
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=self.__doc__ or "", features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        sizes = self.builder_config.sizes
        return {name: self._generate_examples(name, count) for name, count in sizes.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        return records(SPLITS[split], count, self.builder_config.side)
