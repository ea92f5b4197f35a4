"""Trains the bundled CLIP from captions alone.

    python -m launch.pretrain --config=configs/pretrain_tiny.py --workdir=runs/pretrain_tiny

Scenes are drawn inside the training step, so nothing is downloaded or written but checkpoints. The learning curve of
the bundled weights, with its hardware and date, is kept beside them (spatial_clip_jax/assets/tiny_clip).
"""

from ml_collections import ConfigDict

from configs.common import REPLICATED, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: steps=N, batch_size=N, seed=N."""
    values = parse_arg(arg, steps=4800, batch_size=64, seed=0)
    return ConfigDict(
        dict(
            **values,
            geometry="tiny",
            split="train",
            tokenizer=dict(captions=4000, merges=500),
            # Weight of naming the caption's words (SuperClass) beside the contrastive loss.
            caption_words=1.0,
            validation_pictures=512,
            optimizer=dict(
                name="muon", learning_rate=2e-3, warmup_steps=150, weight_decay=0.05, b2=0.98, clip_norm=1.0
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            sharding=REPLICATED,
            checkpoint=dict(every_steps=200, keep=1, keep_every=0, best="", keep_best=1),
            guard=dict(window=100, most=5),
            watchdog=dict(seconds=600.0),
            log_every=20,
            evaluate_every=200,
            distributed="off",
        )
    )
