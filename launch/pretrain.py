"""Trains a CLIP from the captions of the bundled world, and writes it as a Hugging Face folder.

python -m launch.pretrain --config=configs/pretrain_tiny.py --workdir=runs/pretrain_tiny
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from launch import cli
from spatial_clip_jax.convert.export import save_clip
from spatial_clip_jax.data.scenes import vocabulary
from spatial_clip_jax.data.scenes.captioned import CaptionedScenes
from spatial_clip_jax.data.scenes.render import render
from spatial_clip_jax.data.scenes.sample import Scene, stack_scenes
from spatial_clip_jax.data.scenes.splits import SPLITS, caption_at, scene_at
from spatial_clip_jax.data.tokenizer import BOS, EOS, encode, train_tokenizer
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import Params, abstract_params, init_module, join_params, split_params
from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.models.vision import preprocess
from spatial_clip_jax.objectives.caption_words import caption_words, rarity
from spatial_clip_jax.objectives.contrastive import contrastive
from spatial_clip_jax.train.agreement import join
from spatial_clip_jax.train.distributed import is_main, to_host
from spatial_clip_jax.train.loop import train
from spatial_clip_jax.train.task import Task

logger = logging.getLogger(__name__)


def pretrain(config: ConfigDict, workdir: Path) -> None:
    """Runs the whole: tokenizer, training, export to `workdir/export`."""
    join(config)
    captions = _captions(config)
    tokenizer = train_tokenizer(captions, config.tokenizer.merges)
    spec = _spec(config, tokenizer)
    definition, _ = abstract_params(lambda rngs: Clip(spec, rngs=rngs))
    weights = rarity(encode(tokenizer, captions, spec.text_tower), spec.text_tower.vocab_size)
    batches = CaptionedScenes(
        SPLITS[config.split],
        config.batch_size,
        tokenizer,
        spec.text_tower,
        jax.process_index(),
        jax.process_count(),
    )
    task = Task(
        params=lambda key: _initial(spec, key),
        frozen={},
        loss_fn=_loss(definition, spec, config.caption_words, weights),
        batches=batches,
    )
    result = train(config, task, workdir, _evaluation(definition, spec, tokenizer, config.validation_pictures))
    params = to_host(result.params)["clip"]
    if is_main():
        file = workdir / "tokenizer.json"
        tokenizer.save(str(file))
        save_clip(workdir / "export", spec, params, file)
        logger.info("written: %s", workdir / "export")


def _captions(config: ConfigDict) -> list[str]:
    split = SPLITS[config.split]
    return [caption_at(split, i, scene_at(split, i)) for i in range(config.tokenizer.captions)]


def _initial(spec: ClipSpec, key: Any) -> Params:
    """The CLIP's parameters, and those of the head that names the caption's words, which training alone needs."""
    clip = split_params(init_module(lambda rngs: Clip(spec, rngs=rngs), key))[1]
    return {"clip": clip, "caption_head": {"kernel": jnp.zeros((spec.embed_dim, spec.text_tower.vocab_size))}}


def _spec(config: ConfigDict, tokenizer: Tokenizer) -> ClipSpec:
    """The named geometry with this tokenizer's vocabulary."""
    spec = named_spec(config.geometry)
    ids = tokenizer.get_vocab()
    text = dataclasses.replace(
        spec.text_tower, vocab_size=len(ids), bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[EOS]
    )
    return dataclasses.replace(spec, text=text)


def _loss(definition: Any, spec: ClipSpec, words: float, weights: np.ndarray) -> Callable[..., Any]:
    """The contrastive loss plus `words` times the caption-word loss."""

    def loss_fn(params: Any, frozen: Any, batch: Any, key: Any) -> Any:
        del frozen, key
        model, ids = join_params(definition, params["clip"]), batch["ids"]
        images = render(batch["scene"], spec.vision.image_size).image
        embedding = model.vision(preprocess(images, spec.vision)).embedding
        matched, parts = contrastive(embedding, model.text(ids), params["clip"]["logit_scale"], ids)
        named, more = caption_words(embedding, params["caption_head"]["kernel"], ids, jnp.asarray(weights))
        return matched + words * named, {**parts, **more}

    return loss_fn


def _evaluation(definition: Any, spec: ClipSpec, tokenizer: Tokenizer, pictures: int) -> Callable[..., Any]:
    """Zero-shot top-1 of one-object validation pictures among all colour-class pairs, seen and unseen apart."""
    scenes = _one_object_scenes(pictures)
    batch = stack_scenes(scenes)
    pairs = list(zip(batch["cls"][:, 0].tolist(), batch["colour"][:, 0, 0].tolist(), strict=True))
    truth = np.array([c * len(vocabulary.COLOURS) + colour for c, colour in pairs])
    seen = np.array([pair not in vocabulary.HELD_OUT for pair in pairs])
    phrases = [f"a photo of a {phrase}" for phrase in vocabulary.pair_phrases()]
    ids = encode(tokenizer, phrases, spec.text_tower)

    @jax.jit
    def predict(params: Any) -> jax.Array:
        model = join_params(definition, params["clip"])
        images = render(batch, spec.vision.image_size).image
        text = model.text(jnp.asarray(ids))
        text = text / jnp.linalg.norm(text, axis=-1, keepdims=True)
        return jnp.argmax(model.vision(preprocess(images, spec.vision)).embedding @ text.T, -1)

    def evaluate(step: int, params: Any) -> dict[str, float]:
        del step
        hits = np.asarray(predict(params)) == truth
        return {"zero_shot_top1": float(hits[seen].mean()), "zero_shot_top1_unseen": float(hits[~seen].mean())}

    return evaluate


def _one_object_scenes(count: int) -> list[Scene]:
    split, index = SPLITS["validation"], 0
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = scene_at(split, index)
        scenes += [scene] if scene["count"] == 1 else []
        index += 1
    return scenes


if __name__ == "__main__":
    cli.run(pretrain)
