"""The four splits as endless, seeded sequences of scenes; a data set on disk is a stretch of them."""

from dataclasses import dataclass

import numpy as np

from spatial_clip_jax.data.scenes.captions import caption
from spatial_clip_jax.data.scenes.sample import ALL_COLOURS, OBJECT_COUNT_ODDS, Scene, WorldRules, sample_scene

WORLD_SEED = 20261124
# A test or validation object that others hide more than this is drawn again (the whole scene is).
MIN_VISIBLE = 0.4
PALETTE_BLOCK = 64
# Captioned pictures mostly show one thing, as pictures on the web do.
CAPTIONED_COUNT_ODDS = (0.56, 0.2, 0.12, 0.07, 0.05)


@dataclass(frozen=True)
class Split:
    """`code` keeps the seeds of splits apart; `annotated` splits carry masks, boxes and relations.

    In a split with `hard_negatives`, every second block of PALETTE_BLOCK neighbouring scenes shares two colours, so
    that within a contrastive batch colour alone does not tell its pictures apart: a ViT learns colour at once and
    shape late, if it can get by without.
    """

    name: str
    code: int
    rules: WorldRules
    annotated: bool = False
    captioned: bool = False
    hard_negatives: bool = False


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split(
            "train", 1, WorldRules(held_out=False, count_odds=CAPTIONED_COUNT_ODDS), captioned=True, hard_negatives=True
        ),
        Split("unlabeled", 2, WorldRules()),
        Split("validation", 3, WorldRules(), annotated=True, captioned=True),
        Split("test", 4, WorldRules(), annotated=True, captioned=True),
        Split("test_single", 5, WorldRules(count_odds=(1.0, *(0.0,) * (len(OBJECT_COUNT_ODDS) - 1))), annotated=True),
    )
}


def scene_at(split: Split, index: int, attempt: int = 0) -> Scene:
    """Scene `index` of a split; `attempt` counts how often it was drawn again."""
    return sample_scene((WORLD_SEED, split.code, index, attempt), split.rules, _palette(split, index))


def _palette(split: Split, index: int) -> tuple[int, ...]:
    block = index // PALETTE_BLOCK
    if not split.hard_negatives or block % 2 == 0:
        return ALL_COLOURS
    rng = np.random.default_rng((WORLD_SEED, split.code, block))
    return tuple(rng.choice(ALL_COLOURS, 2, replace=False).tolist())


def caption_at(split: Split, index: int, scene: Scene) -> str:
    """The caption that goes with scene `index`, by a generator of its own."""
    return caption(scene, np.random.default_rng((WORLD_SEED, split.code, index, 2**31)))
