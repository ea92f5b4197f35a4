"""The endless stream of scenes with captions, for pretraining: scenes are drawn on the device inside the step."""

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from spatial_clip_jax.data.scenes.sample import stack_scenes
from spatial_clip_jax.data.scenes.splits import Split, caption_at, scene_at
from spatial_clip_jax.data.tokenizer import encode
from spatial_clip_jax.models.spec import TextSpec


class CaptionedScenes:
    """Batches {"scene": scene parameters, "ids": (b, t) token ids}, in the order of the split's indices.

    Position is an index: any number of hosts reads disjoint slices of the same global batch, and state is one number.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        tokenizer: Tokenizer,
        text: TextSpec,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} does not divide among {process_count} processes")
        self.split, self.batch_size = split, batch_size
        self.tokenizer, self.text = tokenizer, text
        self.process_index, self.process_count = process_index, process_count
        self.batches_read = 0

    def __iter__(self) -> "CaptionedScenes":
        return self

    def __next__(self) -> dict[str, Any]:
        local = self.batch_size // self.process_count
        start = self.batches_read * self.batch_size + self.process_index * local
        indices = range(start, start + local)
        scenes = [scene_at(self.split, index) for index in indices]
        captions = [caption_at(self.split, index, scene) for index, scene in zip(indices, scenes, strict=True)]
        self.batches_read += 1
        ids: np.ndarray = encode(self.tokenizer, captions, self.text)
        return {"scene": stack_scenes(scenes), "ids": ids}

    def get_state(self) -> dict[str, int]:
        """What set_state needs to go on after the batch last returned."""
        return {"batches_read": self.batches_read}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken."""
        self.batches_read = int(state["batches_read"])
