"""UniRefiner (arXiv 2605.19622): a ring of register patches takes up the tokens that encode no place.

    python -m launch.train --config=configs/adapt/unirefiner.py --workdir=runs/unirefiner

Kept, from its code: low-rank updates of all blocks (rank 8, alpha 16), the loss with its filters, three crops a picture
beside an unrelated picture, the mask of lazy channels, and late correlations within a wider ring. SigLIP2-So400M's own
numbers are those of `model=siglip2_so400m` (150 steps of 64 pictures, there: `steps=150`); for other towers, which it
does not train, its layers of attention are scaled to their depth. The ring is one patch for every model here.

Different: crops and the unrelated picture are of the tower's native size, no dropout within the updates, the head has
none, pictures are mirrored, and cut to their centred square instead of squashed to one. The bundled model has of the
other recipes the learning rate, the warm-up, gradients clipped to norm 1 and AdamW's eps, 1e-6. `variant` does not
count.

Bundled model: average .108, seed 0, 49 minutes on one core of an AMD EPYC, 2026-11-26 (docs/recipes.md says why). Other
models: not run.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.adapt.base import Asked, adapter, optimizer, read_arg, recipe

PUBLISHED_LAYERS = (10, 15, 27)  # SigLIP2-So400M: first and last layer of the filter by attention, of so many


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    first, last, depth = PUBLISHED_LAYERS
    layers = range(round(first * asked.model.layers / depth), round(last * asked.model.layers / depth) + 1)
    term = dict(
        weight=1.0,
        crops=3,
        temperature=0.2,
        uniformity=0.3,
        matching=True,
        attention_layers=tuple(layers),
        absorption_weight=0.1,
        fill="zeros",
        lazy_channels=5,
        correlation_weight=0.4,
        correlation_from=asked.steps // 10,
    )
    return recipe(
        asked,
        adapter=adapter(asked, "plain", variant="lora", blocks=asked.model.layers, ring=1),
        objectives=dict(registers=term),
        optimizer=optimizer(asked, asked.steps, schedule="constant", **_published(asked)),
    )


def _published(asked: Asked) -> dict[str, Any]:
    """AdamW as published: 1e-4 for 16 pictures a step, and for models with "vit" in their names other moments."""
    if asked.name == "tiny":
        return dict(weight_decay=0.1)
    moments = dict(b2=0.98, eps=1e-6) if "vit" in asked.model.source else dict(b2=0.999, eps=1e-8)
    rate = 1e-4 * asked.batch_size / 16
    return dict(weight_decay=0.1, learning_rate=rate, warmup_steps=0, clip_norm=0.0, **moments)
