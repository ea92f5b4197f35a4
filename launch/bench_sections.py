"""What `launch.bench` measures, a function a section: {row: {column: number}}."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from launch.bench_memory import Asked, measure
from launch.rival import INPUTS, Job, Rival
from spatial_clip_jax.api import load
from spatial_clip_jax.evaluate.speed import medians, seconds
from spatial_clip_jax.fusion.encoders import embed_images, read_pixels
from spatial_clip_jax.fusion.fuser import Fuser
from spatial_clip_jax.fusion.layout import window_count
from spatial_clip_jax.fusion.pyramid import Pyramid
from spatial_clip_jax.models.clip import vision_tower
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import Params, init_module, split_params
from spatial_clip_jax.spatial_clip import SpatialClip
from spatial_clip_jax.train.arithmetic import flops_of, of_jaxpr
from spatial_clip_jax.train.chips import chip_of
from spatial_clip_jax.train.sections import read_section

Rows = dict[str, dict[str, Any]]
GIB = 2**30
COMPILED = "/jax/core/compile/backend_compile_duration"
MIXED_SIDES = (64, 1500)  # of the pictures in "compilations"


@dataclass(frozen=True)
class Bench:
    """What all sections are given: the model, and the folder that it was written to beside what PyTorch is asked."""

    config: ConfigDict
    folder: Path
    model: SpatialClip
    picture: np.ndarray
    text: np.ndarray

    @property
    def pyramid(self) -> Pyramid:
        return read_section(Pyramid, self.config.pyramid, "pyramid")

    @property
    def native(self) -> int:
        return self.model.spec.vision.image_size


def prepare(config: ConfigDict, folder: Path) -> Bench:
    """The CLIP in `folder` as PyTorch reads it, and what it is asked: a picture of noise, random texts."""
    model = load(dtype=config.dtype) if config.geometry == "tiny" else _random_clip(config.geometry, config.dtype)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (config.side, config.side, 3), np.uint8)
    text = rng.normal(size=(config.phrases, model.spec.embed_dim)).astype(np.float32)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    model.towers.check(read_section(Pyramid, config.pyramid, "pyramid").readout)
    model.save_pretrained(folder)
    mean, std = (np.array(values, np.float32) for values in (model.spec.vision.mean, model.spec.vision.std))
    np.savez(folder / INPUTS, picture=picture, text=text, mean=mean, std=std)
    return Bench(config, folder, model, picture, text)


def tower(bench: Bench) -> Rows:
    """Global embeddings of native pictures, against transformers with SDPA; seconds a picture."""
    batches, compiles = bench.config.batches, (False, True) if bench.config.compile_torch else (False,)
    view = bench.picture[: bench.native, : bench.native]
    with Rival(bench.folder, bench.config.dtype) as rival:
        runs = {f"jax, {n} at once": _embedding(bench.model, np.stack([view] * n)) for n in batches}
        for compiled in compiles:
            name = "torch.compile" if compiled else "torch"
            runs |= {f"{name}, {n} at once": _rival_run(rival, Job("tower", n, compiled)) for n in batches}
        found = _medians(runs, bench)
        apart = _apart(rival.result(Job("tower", 1)), bench.model.encode_image(view))
    rows = {name: {"seconds": found[name] / int(name.split(", ")[1].split()[0])} for name in runs}
    window = jax.ShapeDtypeStruct((1, bench.native, bench.native, 3), jnp.uint8)
    flops = of_jaxpr(embed_images.trace(bench.model.towers, bench.model.params, window).jaxpr)
    return _with_ratios(rows, flops) | {"agreement": {"largest difference of unit vectors": apart}}


def fusion(bench: Bench) -> Rows:
    """Fusing a picture against the tower reading the same windows, as many at once, and nothing else."""
    fuser = bench.model.fuser(bench.pyramid)
    count, chunk = _windows(bench), fuser.program([bench.picture.shape[:2]]).layout.chunk
    windows = jnp.zeros((-(-count // chunk), chunk, bench.native, bench.native, 3))
    towers, params, readout = bench.model.towers, bench.model.params, bench.pyramid.readout

    @jax.jit
    def alone(params: Params, parts: jax.Array) -> jax.Array:
        return jax.lax.map(lambda part: read_pixels(towers, params, part, readout), parts)

    runs = {
        "tower alone": lambda: seconds(lambda: alone(params, windows)),
        "fusion": lambda: seconds(lambda: fuser.run([bench.picture])),
    }
    found = _medians(runs, bench)
    rows: Rows = {name: {"seconds": found[name], "ratio": found[name] / found["tower alone"]} for name in runs}
    flops = _flops(bench, count)
    for row in rows.values():
        row |= {"windows": count} | _speed(flops / row["seconds"])
    return rows


def sliding(bench: Bench) -> Rows:
    """A picture's similarities with all phrases at its pixels, from bytes to the result, against PyTorch."""
    pyramid, compiles = bench.pyramid, (False, True) if bench.config.compile_torch else (False,)
    ours = _similarities(bench)
    with Rival(bench.folder, bench.config.dtype) as rival:
        runs: dict[str, Callable[[], float]] = {"jax": lambda: seconds(ours)}
        for compiled in compiles:
            for batch in sorted({1, *bench.config.batches}):
                name = f"{'torch.compile' if compiled else 'torch'}, {batch} window{'s' * (batch > 1)} at once"
                runs[name] = _rival_run(rival, Job("sliding", batch, compiled, pyramid.scales, pyramid.overlap))
        found = _medians(runs, bench)
        theirs = rival.result(Job("sliding", 1, False, pyramid.scales, pyramid.overlap))
    rows = {name: {"seconds": median} for name, median in found.items()}
    like = float(np.corrcoef(theirs.ravel(), np.asarray(ours()).ravel())[0, 1])
    return _with_ratios(rows, _flops(bench, _windows(bench))) | {"agreement": {"correlation of similarities": like}}


def latency(bench: Bench) -> Rows:
    """One picture after another, from bytes to the map on the host."""
    fuser = bench.model.fuser(bench.pyramid)
    times = [_timed(lambda: list(fuser.maps([bench.picture]))) for _ in range(bench.config.latencies + 1)][1:]
    milliseconds = 1e3 * np.percentile(times, (50, 99))
    return {"one picture": {"p50_ms": float(milliseconds[0]), "p99_ms": float(milliseconds[1]), "runs": len(times)}}


def memory(bench: Bench) -> Rows:
    """A large picture labelled by many phrases within budgets."""
    asked, settings = bench.config.memory, dataclasses.asdict(bench.pyramid)
    pyramid = Pyramid(**settings | {"scales": tuple(asked.scales), "overlap": asked.overlap})
    shared = bench.folder, bench.config.dtype, pyramid, asked.side, asked.phrases
    return {f"{budget:g} GiB": measure(Asked(*shared, int(budget * GIB))) for budget in asked.budgets_gib}


def compilations(bench: Bench) -> Rows:
    """How many programs are compiled for pictures of mixed sizes, with the bundled CLIP; and blank windows."""
    counted: list[str] = []

    def count_compiled(event: str, *_: Any, **__: Any) -> None:
        counted.extend([event] if event == COMPILED else [])

    jax.monitoring.register_event_duration_secs_listener(count_compiled)
    model = load(dtype=bench.config.dtype)
    rng = np.random.default_rng(0)
    sizes = rng.integers(*MIXED_SIDES, (bench.config.pictures, 2))
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    fuser = Fuser(model.towers, model.params, bench.pyramid)
    before = len(counted)
    taken = _timed(lambda: list(fuser.maps(pictures)))
    count = sum(window_count(tuple(size.tolist()), bench.pyramid, model.spec.vision) for size in sizes)
    content = {"pictures": len(pictures), "compilations": len(counted) - before, "windows": count, "seconds": taken}
    return {"mixed pictures": content | {"blank_windows": fuser.windows_read - count}}


SECTIONS: Mapping[str, Callable[[Bench], Rows]] = {
    function.__name__: function for function in (tower, fusion, sliding, latency, memory, compilations)
}


def machine() -> dict[str, float]:
    """What this machine does at best: TFLOP/s of an MLP's matrix product, in fp32 and bfloat16, and GB/s of a copy."""
    large = jnp.ones(2**26)
    copy = jax.jit(lambda x: x + 1.0)
    return {
        "tflop_per_second_float32": _product_speed(jnp.float32),
        "tflop_per_second_bfloat16": _product_speed(jnp.bfloat16),
        "gb_per_second": 2 * large.nbytes / min(seconds(lambda: copy(large)) for _ in range(5)) / 1e9,
    }


def _product_speed(dtype: Any) -> float:
    left, right = jnp.ones((788, 768), dtype), jnp.ones((768, 3072), dtype)
    run = jax.jit(lambda left, right: jnp.matmul(left, right, preferred_element_type=jnp.float32))
    return 2 * 788 * 768 * 3072 / min(seconds(lambda: run(left, right)) for _ in range(20)) / 1e12


def _random_clip(geometry: str, dtype: str) -> SpatialClip:
    """A vision tower of that geometry alone, with random weights."""
    spec = dataclasses.replace(named_spec(geometry), text=None)
    params = split_params(init_module(lambda rngs: vision_tower(spec.vision, spec.embed_dim, rngs=rngs), 0))[1]
    return SpatialClip(spec, {"vision": params}, None, dtype)


def _medians(runs: Mapping[str, Callable[[], float]], bench: Bench) -> dict[str, float]:
    """Of the second of two runs in every turn: what was idle has been put aside by caches or the system until then."""

    def second(run: Callable[[], float]) -> Callable[[], float]:
        return lambda: (run(), run())[1]

    return medians({name: second(run) for name, run in runs.items()}, bench.config.repetitions)


def _embedding(model: SpatialClip, images: np.ndarray) -> Callable[[], float]:
    placed = jax.device_put(images)
    seconds(lambda: embed_images(model.towers, model.params, placed))
    return lambda: seconds(lambda: embed_images(model.towers, model.params, placed))


def _similarities(bench: Bench) -> Callable[[], Any]:
    fuser, text = bench.model.fuser(bench.pyramid), jax.device_put(bench.text)
    rows, columns = fuser.grid(bench.picture.shape[:2])

    @jax.jit
    def at_pixels(maps: jax.Array, text: jax.Array) -> jax.Array:
        fit = jnp.einsum("hwe,ke->khw", maps[0, :rows, :columns], text, precision="highest")
        return jax.image.resize(fit, (len(text), *bench.picture.shape[:2]), "linear")

    return lambda: at_pixels(fuser.run([bench.picture]), text)


def _rival_run(rival: Rival, job: Job) -> Callable[[], float]:
    rival.prepare(job)
    return lambda: rival.seconds(job)


def _windows(bench: Bench) -> int:
    return window_count(bench.picture.shape[:2], bench.pyramid, bench.model.spec.vision)


def _flops(bench: Bench, count: int) -> float:
    """Of the tower reading so many windows."""
    towers, params, readout = bench.model.towers, bench.model.params, bench.pyramid.readout
    window = jax.ShapeDtypeStruct((1, bench.native, bench.native, 3), jnp.float32)
    return count * flops_of(lambda params, pixels: read_pixels(towers, params, pixels, readout), params, window)


def _speed(flops_per_second: float) -> dict[str, float]:
    """In TFLOP/s, and of the device's peak where that is known."""
    chip = chip_of(jax.devices()[0])
    speed = {"tflop_per_second": flops_per_second / 1e12}
    return speed | ({"utilisation": flops_per_second / chip.flops} if chip else {})


def _with_ratios(rows: Rows, flops: float) -> Rows:
    """How many times as fast as each row of PyTorch our best one is, and what that is in arithmetic."""
    best = min(row["seconds"] for name, row in rows.items() if name.startswith("jax"))
    for name, row in rows.items():
        row |= _speed(flops / row["seconds"])
        row |= {"jax_is_faster": row["seconds"] / best} if name.startswith("torch") else {}
    return rows


def _apart(theirs: np.ndarray, ours: Any) -> float:
    return float(np.abs(theirs / np.linalg.norm(theirs, axis=-1, keepdims=True) - np.asarray(ours)).max())


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
