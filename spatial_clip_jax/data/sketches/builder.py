"""`sketches`: the second world as a TensorFlow Datasets builder, written as ArrayRecord without TensorFlow.

Datasheet: README.md beside this file.
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from spatial_clip_jax.data.scenes.records import World, WorldConfig, annotated_record
from spatial_clip_jax.data.sketches.draw import Drawing, draw
from spatial_clip_jax.data.sketches.sample import SPLITS, Sketch, Split, sketch_at

MIN_VISIBLE = 0.5
MAX_ATTEMPTS = 30
SIDE = 320
SCALES = (2.0, 3.0, 4.0)


class Sketches(World):
    """Hand-drawn sketches of 1 to 8 small objects with exact masks, boxes, parts, attributes and relations."""

    name = "sketches"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release: the vocabulary of scenes, drawn by another hand at 320 pixels."}
    BUILDER_CONFIGS = [
        WorldConfig(
            name="sketches",
            description="Pictures of another renderer and scale, to measure on; none to train on.",
            side=SIDE,
            sizes={"validation": 64, "test": 128, "test_single": 256},
            scales=SCALES,
        ),
        WorldConfig(
            name="sketches_mini",
            description="For tests: every split in seconds.",
            side=SIDE,
            sizes={"validation": 2, "test": 4, "test_single": 2},
            scales=SCALES,
        ),
    ]

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            sketch, drawing = drawn_at(SPLITS[split], index, self.builder_config.side)
            things = [sketched.thing for sketched in sketch.things]
            yield index, annotated_record(drawing.image, drawing.instances, drawing.parts, things, "")


def drawn_at(split: Split, index: int, side: int) -> tuple[Sketch, Drawing]:
    """Sketch `index` of a split, drawn again until every thing shows at least MIN_VISIBLE of itself."""
    for attempt in range(MAX_ATTEMPTS):
        sketch = sketch_at(split, index, attempt)
        drawing = draw(sketch, side)
        visible = [(drawing.instances == i + 1).sum() for i in range(len(sketch.things))]
        if all(shown >= MIN_VISIBLE * drawn for shown, drawn in zip(visible, drawing.drawn, strict=True)):
            return sketch, drawing
    raise RuntimeError(f"{split.name} {index}: something is hidden in all of {MAX_ATTEMPTS} attempts")
