"""From a config to what is trained: the pictures, the teachers, the terms of the loss, and the stage before."""

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from launch.pictures import source_of
from spatial_clip_jax.data.scenes.vocabulary import pair_phrases
from spatial_clip_jax.data.sources import Source
from spatial_clip_jax.data.streams import Stream, open_stream
from spatial_clip_jax.evaluate.prompts import embed_phrases
from spatial_clip_jax.fusion.encoders import Towers, abstract_towers, fused_maps
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.clip import similarity_scale
from spatial_clip_jax.models.compute import Compute, stored
from spatial_clip_jax.models.digest import digest
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.spec import AdapterSpec, AnyVisionSpec
from spatial_clip_jax.spatial_clip import SpatialClip
from spatial_clip_jax.train.adaptation import adaptation_loss
from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.register_term import live_channels
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.task import Task
from spatial_clip_jax.train.teacher import CachedTeacher, fingerprint
from spatial_clip_jax.train.terms import RegionText, given_boxes, read_terms
from spatial_clip_jax.train.views import (
    AVERAGE,
    BIAS,
    CHANNELS,
    FUSION,
    NOUNS,
    REFINER,
    SCALE,
    Teachers,
    named_fusion,
    teacher_params,
)
from spatial_clip_jax.train.workdir import resolve

logger = logging.getLogger(__name__)
TOWER = "tower"  # what an adapter is at first, unless it is the refiner
STAGE_SEED = 1_000_000  # a stage before draws pictures, mirrorings and boxes of its own
BANK_PICTURES, BANK_BATCH = 64, 8  # lazy channels are told from so many pictures, so many at a time
# What a stage before has of its own; the rest it shares with the stage it serves.
STAGE = ("steps", "adapter", "start", "teacher", "cache_teacher", "objectives", "optimizer", "flip", "data")


def check_recipe(config: ConfigDict) -> None:
    """ValueError for a config that trains nothing."""
    if "objectives" not in config:
        raise ValueError("this config trains nothing: it has no `objectives`; one that has is configs/quickstart.py")


def earlier_stage(config: ConfigDict) -> ConfigDict | None:
    """The config of the stage before (`config.refiner`), whose adapter this one may ask as its teacher; or None."""
    if not config.refiner:
        return None
    unknown = sorted(set(config.refiner) - {*STAGE, REFINER})
    if unknown:
        raise ValueError(f"config.refiner has unknown fields {unknown}; the valid ones are {sorted(STAGE)}")
    own = {"measure": False, "start": TOWER, REFINER: {}, "seed": config.seed + STAGE_SEED}
    # Whole sections: what the later stage says of itself does not shine through.
    return ConfigDict(config.to_dict() | own | config.refiner.to_dict())


def adaptation_task(
    config: ConfigDict, model: SpatialClip, adapter: AdapterSpec, refiner: SpatialClip | None, maps: Path
) -> Task:
    """What `config` asks to train, on the frozen `model`; `refiner` is the same model with an earlier adapter.

    The teacher's maps are kept in the folder `maps`.
    """
    _check_scale(config.scale, model.spec.vision)
    _check_start(config, adapter, refiner.adapter_spec if refiner else None)
    compute = read_section(Compute, config.compute, "compute")
    model, refiner = model.computing(compute), refiner and refiner.computing(compute)
    towers, params = model.new_adapter(adapter, config.seed)
    if refiner and config.start == REFINER:
        params = refiner.params["adapter"]
    terms, teachers = read_teaching(config, (refiner or model).towers)
    source = source_of(config.data)
    frozen = _frozen(config, source, model, refiner, terms)
    cached = FUSION in asked_teachers(terms) and config.cache_teacher
    stream = stream_of(config, source, model, given_boxes(terms))
    batches = _taught(stream, config, source, teachers, frozen, maps, model) if cached else stream
    loss, trunk = adaptation_loss(towers, teachers, terms, config.flip), digest(model.params["vision"])
    return Task(params, frozen, loss, batches, trunk, stream.counters)


def check_stages(config: ConfigDict, model: SpatialClip) -> Towers:
    """The towers that the last stage leaves; ValueError for what any stage gets wrong, before the first takes its time.

    The pictures, the mesh and the shardings, which stages share, are checked by the first.
    """
    stage, compute = earlier_stage(config), read_section(Compute, config.compute, "compute")
    model = model.computing(compute)
    before = _check_before(stage, model) if stage else model.towers
    settings = read_settings(config)
    make_optimizer(settings.optimizer, settings.steps)
    _check_scale(config.scale, model.spec.vision)
    terms, teachers = read_teaching(config, before)
    if FUSION in asked_teachers(terms):
        _check_windows(config, teachers.fusion, model)
    for term in terms.values():
        if isinstance(term, RegionText) and not term.nouns and config.data.kind != "scenes":
            nouns_of(source_of(config.data), term)
    adapter = read_section(AdapterSpec, config.adapter, "adapter")
    towers = abstract_towers(model.spec, compute, adapter)[0]
    _check_start(config, adapter, read_section(AdapterSpec, stage.adapter, "refiner.adapter") if stage else None)
    return towers


def _check_before(stage: ConfigDict, model: SpatialClip) -> Towers:
    try:
        return check_stages(stage, model)
    except ValueError as error:
        raise ValueError(f"in config.refiner, the stage before: {error}") from error


def _check_windows(config: ConfigDict, fusion: FusionSettings, model: SpatialClip) -> None:
    """ValueError unless the pictures can be seen through the teacher's windows."""
    try:
        fusion.plan(*picture_size(config, model.spec.vision), model.spec.vision)
    except ValueError as error:
        raise ValueError(
            f"config.teacher.windows={fusion.windows}, in units of the native size, do not fit: {error}"
        ) from error


def read_teaching(config: ConfigDict, towers: Towers) -> tuple[dict[str, Any], Teachers]:
    """The terms of the loss, and whom they ask; `towers` holds the frozen tower, and the refiner as its adapter.

    ValueError for names and settings that are not understood.
    """
    terms = read_terms(config.objectives)
    _check_given(config.data, terms)
    teachers = Teachers(towers, read_section(FusionSettings, config.teacher, "teacher"))
    asked = asked_teachers(terms)
    for name in sorted(asked):
        teachers.check(name)
    if FUSION in asked:
        teachers.check_fusion()
        asked.add(teachers.fusion.readout)
    _check_average(config, asked)
    return terms, teachers


def _check_given(data: ConfigDict, terms: Mapping[str, Any]) -> None:
    """ValueError if terms ask for boxes or nouns that the pictures do not come with."""
    boxes = data.get("boxes")
    if data.kind == "scenes" and (boxes or data.get("nouns")):
        raise ValueError("config.data.boxes and nouns are of your own pictures, data.kind='folder' or 'tfds'")
    if given_boxes(terms) and not boxes:
        raise ValueError(
            "boxes='given' are those that come with the pictures: name them by config.data.boxes, of a folder a file "
            "in COCO's format, of a TFDS dataset a feature such as 'objects/bbox'"
        )
    for term in terms.values():
        if isinstance(term, RegionText) and not (term.nouns or data.kind == "scenes" or boxes):
            raise ValueError(
                "config.objectives.region_text.nouns is empty: name what your pictures show, such as "
                '--config.objectives.region_text.nouns=\'("cat", "dog")\''
            )


def _check_average(config: ConfigDict, asked: set[str]) -> None:
    """ValueError if the student's average is asked and not kept, or if maps that are pooled by it are."""
    if AVERAGE in asked and not config.optimizer.get("average"):
        raise ValueError("the teacher 'average' needs config.optimizer.average, such as 0.999")
    if {AVERAGE, FUSION} <= asked and config.teacher.readout == AVERAGE and config.cache_teacher:
        raise ValueError(
            "config.teacher.readout='average' makes other maps at every step, which cannot be kept; give "
            "cache_teacher=False (--config.cache_teacher=False)"
        )


def asked_teachers(terms: Mapping[str, Any]) -> set[str]:
    """The teachers that the terms name."""
    return {term.teacher for term in terms.values() if hasattr(term, "teacher")}


def _check_start(config: ConfigDict, adapter: AdapterSpec, earlier: AdapterSpec | None) -> None:
    """ValueError unless an adapter can start as `config.start` says; `earlier` is the refiner's."""
    if config.start not in (TOWER, REFINER):
        raise ValueError(f"config.start must be {TOWER!r} or {REFINER!r}, got {config.start!r}")
    if config.start == REFINER and adapter != earlier:
        raise ValueError(
            f"config.start is 'refiner': config.refiner.adapter must be like config.adapter, {adapter}, got {earlier}"
        )


def _frozen(
    config: ConfigDict, source: Source, model: SpatialClip, refiner: SpatialClip | None, terms: Mapping[str, Any]
) -> Params:
    """What the step may ask and does not train; see train/views.py."""
    frozen = {"vision": model.params["vision"]}
    if refiner:
        frozen[REFINER] = refiner.params["adapter"]
    frozen = stored(frozen, model.compute.dtype)
    for term in terms.values():
        if isinstance(term, RegionText):
            frozen |= _named(model, nouns_of(source, term))
        if getattr(term, "lazy_channels", 0):
            frozen[CHANNELS] = jax.numpy.asarray(_channels(config, source, model, term.lazy_channels))
    return frozen


def nouns_of(source: Source, term: RegionText) -> tuple[str, ...]:
    """What regions are named by; ValueError if the boxes should have brought their names and did not."""
    if term.nouns or source.annotations is None:
        return term.nouns or tuple(pair_phrases())
    if not source.annotations.nouns:
        raise ValueError(
            "the boxes of config.data.boxes have no names: give config.objectives.region_text.nouns with "
            "labels='tower', or, of a TFDS dataset, their feature, config.data.nouns, such as 'objects/label'"
        )
    return source.annotations.nouns


def _named(model: SpatialClip, nouns: tuple[str, ...]) -> Params:
    """The nouns' embeddings, and what makes logits of cosines with them: the CLIP's own scale and bias."""
    return {
        NOUNS: jax.numpy.asarray(embed_phrases(model.encode_text, nouns)),
        SCALE: jax.numpy.float32(similarity_scale(model.clip_params)),
        BIAS: jax.numpy.asarray(model.clip_params.get("logit_bias", 0.0), jax.numpy.float32),
    }


def _channels(config: ConfigDict, source: Source, model: SpatialClip, most: int) -> Bool[np.ndarray, " c"]:
    """Which of the tower's channels count, told from the run's first pictures: on every host, at every start the same.

    A few pictures at a time, as many as a large tower has memory for.
    """
    stream = open_stream(
        source,
        BANK_BATCH,
        picture_size(config, model.spec.vision),
        config.seed,
        max_corrupt_fraction=config.data.max_corrupt_fraction,
    )
    pictures = (batch["image"] for batch in itertools.islice(stream, BANK_PICTURES // BANK_BATCH))
    return live_channels(model.towers, model.params, pictures, most, config.seed)


def picture_size(config: ConfigDict, vision: AnyVisionSpec) -> tuple[int, int]:
    """Height and width of the pictures trained on."""
    side = round(config.scale * vision.image_size)
    return side, side


def maps_folder(config: ConfigDict, workdir: Path, shared: Path | None) -> Path:
    """Where the teacher's maps are kept: in a folder of what they depend on below `shared`, or in the run's own.

    What lies there is checked against pictures and weights as well. A refiner is the run's own, and so are its maps.
    """
    if shared is None or config.refiner:
        return workdir / "teacher"
    settings = resolve(config)
    settings["data"].pop("processes")
    text = json.dumps([settings.get(name) for name in ("model", "data", "scale", "teacher")], sort_keys=True)
    return shared / hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_scale(scale: float, vision: AnyVisionSpec) -> None:
    side = scale * vision.image_size
    if not 0 < side < math.inf or round(side) % vision.patch_size:
        raise ValueError(
            f"config.scale={scale} makes pictures of {side} pixels; they must be whole patches of {vision.patch_size}"
        )


def stream_of(config: ConfigDict, source: Source, model: SpatialClip, boxes: int) -> Stream:
    """This host's part of batches of the pictures, as a step of this config takes them."""
    return open_stream(
        source,
        config.batch_size,
        picture_size(config, model.spec.vision),
        config.seed,
        jax.process_index(),
        jax.process_count(),
        boxes=boxes,
        max_corrupt_fraction=config.data.max_corrupt_fraction,
        processes=config.data.processes,
    )


def _taught(
    stream: Stream,
    config: ConfigDict,
    source: Source,
    teachers: Teachers,
    frozen: Params,
    maps: Path,
    model: SpatialClip,
) -> CachedTeacher:
    """The stream with the fused maps of its pictures, which are kept on disk."""
    vision = model.spec.vision
    side, _ = picture_size(config, vision)
    tokens = side // vision.patch_size
    folder, params, fusion = maps / str(jax.process_index()), teacher_params(frozen), teachers.fusion

    def teacher(images: jax.Array) -> jax.Array:
        return fused_maps(teachers.towers, params, images, named_fusion(fusion))

    made_of = fingerprint(source, frozen, fusion=fusion, tower=vision, side=side)
    shape = (tokens, tokens, model.spec.embed_dim)
    return CachedTeacher(stream, teacher, len(source), shape, folder, made_of)
