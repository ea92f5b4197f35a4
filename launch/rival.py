"""CLIP's tower and the published sliding-window protocol in PyTorch, in a process of its own, to be measured against.

The protocol is that of SCLIP (arXiv 2312.01597), ClearCLIP and NACLIP: the picture is resized, windows are read one by
one, each one's similarities are brought to its pixels, and added up and divided by how many windows saw a pixel. With
a batch above 1, windows of a size are read together, which is faster than anything published.
"""

import contextlib
import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clip_jax.data.children import end_with_parent

INPUTS = "inputs.npz"  # beside the weights: picture (H, W, 3) uint8 and text (k, e)
START_SECONDS = 1800.0  # torch.compile takes minutes


@dataclass(frozen=True)
class Job:
    """One thing to be timed: "tower" embeds `batch` native pictures, "sliding" gives a picture's similarities at its
    pixels, `batch` windows at once; `compiled` by torch.compile.
    """

    kind: str
    batch: int
    compiled: bool = False
    scales: tuple[float, ...] = ()
    overlap: float = 0.5


class Rival:
    """The other process; a context manager. ValueError from `prepare` where PyTorch cannot do a job."""

    def __init__(self, folder: Path, dtype: str):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, folder, dtype), daemon=True)
        self.process.start()
        self.about: dict[str, Any] = self._answer()

    def prepare(self, job: Job) -> None:
        """Runs the job once, so that everything is compiled and allocated; and finds the best number of threads."""
        self.connection.send(("prepare", job))
        self._answer()

    def seconds(self, job: Job) -> float:
        """Time of one run."""
        self.connection.send(("time", job))
        return self._answer()

    def result(self, job: Job) -> np.ndarray:
        """What the job computes."""
        self.connection.send(("result", job))
        return self._answer()

    def __enter__(self) -> "Rival":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(("stop", None))
        self.process.join(timeout=10)
        self.process.kill()

    def _answer(self) -> Any:
        if not self.connection.poll(START_SECONDS):
            raise ValueError(f"PyTorch gave no answer in {START_SECONDS:.0f} s")
        try:
            answer = self.connection.recv()
        except EOFError:
            raise ValueError("PyTorch's process ended: is .[torch] installed, and memory left?") from None
        if isinstance(answer, Exception):
            raise ValueError(f"PyTorch: {type(answer).__name__}: {str(answer).splitlines()[0]}")
        return answer


def _serve(connection: Connection, folder: Path, dtype: str) -> None:
    end_with_parent()
    try:
        clip = _TorchClip(folder, dtype)
    except Exception as error:  # whatever it is, the parent says it
        connection.send(RuntimeError(str(error)))
        return
    connection.send(clip.about())
    while True:
        what, job = connection.recv()
        if what == "stop":
            return
        try:
            connection.send(getattr(clip, what)(job))
        except Exception as error:  # torch.compile fails in many ways where a compiler is missing
            connection.send(RuntimeError(str(error) or type(error).__name__))


class _TorchClip:
    """transformers' CLIPVisionModelWithProjection with SDPA."""

    def __init__(self, folder: Path, dtype: str):
        import torch
        from transformers import CLIPVisionModelWithProjection, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cuda.matmul.allow_tf32 = True
        kind = getattr(torch, dtype)
        model = CLIPVisionModelWithProjection.from_pretrained(folder, attn_implementation="sdpa", dtype=kind)
        self.model = model.eval().to(self.device)
        inputs = np.load(folder / INPUTS)
        self.picture = torch.from_numpy(inputs["picture"]).to(self.device)
        self.text = torch.from_numpy(inputs["text"]).to(self.device, kind)
        self.mean, self.std = (torch.from_numpy(inputs[name]).to(self.device, kind) for name in ("mean", "std"))
        self.compiled: dict[str, Any] = {}
        self.threads: dict[Job, int] = {}

    def about(self) -> dict[str, Any]:
        return {"torch": self.torch.__version__, "device": self.device}

    def prepare(self, job: Job) -> None:
        times = {}
        for threads in range(1, (os.cpu_count() or 1) + 1) if self.device == "cpu" else (1,):
            self.threads[job] = threads
            self.time(job)
            times[threads] = self.time(job)
        self.threads[job] = min(times, key=lambda threads: times[threads])

    def time(self, job: Job) -> float:
        start = time.perf_counter()
        self._run(job)
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter() - start

    def result(self, job: Job) -> np.ndarray:
        return self._run(job).float().cpu().numpy()

    def _run(self, job: Job) -> Any:
        self.torch.set_num_threads(self.threads.get(job, 1))
        with self.torch.inference_mode():
            if job.kind == "tower":
                return self._function("embed", job.compiled)(self._native(job.batch))
            return self._sliding(job)

    def _function(self, name: str, compiled: bool) -> Any:
        plain = getattr(self, name)
        if not compiled:
            return plain
        if name not in self.compiled:
            self.compiled[name] = self.torch.compile(plain)
        return self.compiled[name]

    def _native(self, batch: int) -> Any:
        side = self.model.config.image_size
        view = self.picture[:side, :side].permute(2, 0, 1).to(self.mean.dtype)
        pixels = (view / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        return pixels.expand(batch, *pixels.shape).contiguous()

    def embed(self, pixels: Any) -> Any:
        return self.model(pixel_values=pixels).image_embeds

    def dense(self, pixels: Any) -> Any:
        """ClearCLIP's read-out of windows (n, 3, s, s): (n, g, g, e), unit length."""
        functional, vision = self.torch.nn.functional, self.model.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        last = vision.encoder.layers[-1]
        y, attention = last.layer_norm1(hidden), last.self_attn
        shape = (*y.shape[:2], -1, attention.head_dim)
        q, v = (part(y).view(shape).transpose(1, 2) for part in (attention.q_proj, attention.v_proj))
        mixed = functional.scaled_dot_product_attention(q, q, v).transpose(1, 2).reshape(y.shape)
        tokens = self.model.visual_projection(vision.post_layernorm(attention.out_proj(mixed)))[:, 1:]
        grid = int(tokens.shape[1] ** 0.5)
        return functional.normalize(tokens.float(), dim=-1).view(len(pixels), grid, grid, -1)

    def _sliding(self, job: Job) -> Any:
        """Similarities (k, H, W) of the picture with all phrases, the mean over its sizes."""
        height, width = self.picture.shape[:2]
        pixels = (self.picture.to(self.mean.dtype) / 255 - self.mean) / self.std
        whole = pixels.permute(2, 0, 1)[None]
        found = [self._at_size(whole, scale, job) for scale in job.scales]
        resize = self.torch.nn.functional.interpolate
        return sum(resize(fit[None], (height, width), mode="bilinear")[0] for fit in found) / len(found)

    def _at_size(self, whole: Any, scale: float, job: Job) -> Any:
        functional, native, patch = self.torch.nn.functional, self.model.config.image_size, self.model.config.patch_size
        short = min(whole.shape[2:])
        size = [round(side / short * scale * native / patch) * patch for side in whole.shape[2:]]
        view = functional.interpolate(whole.float(), size, mode="bicubic", antialias=True).to(whole.dtype)
        stride = max(1, round((1 - job.overlap) * native / patch)) * patch
        places = [(y, x) for y in _starts(size[0], native, stride) for x in _starts(size[1], native, stride)]
        windows = self.torch.cat([view[..., y : y + native, x : x + native] for y, x in places])
        read = self._function("dense", job.compiled)
        fit = self.torch.cat([read(part) @ self.text.float().T for part in windows.split(job.batch)])
        total, seen = (self.torch.zeros(*shape, device=self.device) for shape in ((len(self.text), *size), size))
        for (y, x), one in zip(places, fit.permute(0, 3, 1, 2).split(1), strict=True):
            inside = (slice(y, y + native), slice(x, x + native))
            total[:, *inside] += functional.interpolate(one, (native, native), mode="bilinear")[0]
            seen[inside] += 1
        return total / seen


def _starts(length: int, window: int, stride: int) -> list[int]:
    return [*range(0, length - window, stride), length - window]
