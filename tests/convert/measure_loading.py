"""Peak memory and time of loading a large checkpoint, beside PyTorch's: `python -m tests.convert.measure_loading`.

Every measurement is a process of its own. Memory is the growth of the peak resident set over what the process had after
its imports, as a multiple of the file's size. Time is what goes from files to parameters; building the module and
tracing our definition are outside, on both sides. PyTorch's is load_file and load_state_dict into a module whose memory
is new, as ours is ("fresh"), and once more into the same module, whose pages are there already ("again").
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.families.clip import CLIP, write_clip
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.params import abstract_params, flatten_params
from spatial_clip_jax.models.spec import ClipSpec

Figures = dict[str, float]
MEMORY_BOUND, TIME_BOUND = 1.3, 1.5  # the goals; loading is within the first alone


def large_spec(layers: int = 14) -> ClipSpec:
    """ViT-L/14 with fewer vision layers: 14 give 1.2 GB in fp32."""
    spec = GEOMETRIES["openai/clip-vit-large-patch14"]
    return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, layers=layers))


def write_checkpoint(folder: Path, spec: ClipSpec) -> dict[str, Path]:
    """The same random CLIPModel as a folder of Hugging Face's, and as a file of torch.save; {suffix: file}."""
    import torch
    from safetensors.torch import save_file

    random, state = np.random.default_rng(0), {}
    for path, leaf in flatten_params(abstract_params(lambda rngs: Clip(spec, rngs=rngs))[1]).items():
        key = tables.to_theirs(path, CLIP.table)
        shape = tables.shape_to_theirs(leaf.shape, key.layout)
        state[key.name] = torch.from_numpy(np.asarray(0.02 * random.standard_normal(shape, np.float32), np.float32))
    (folder / "config.json").write_text(json.dumps(write_clip(spec)))
    files = {suffix: folder / f"model.{suffix}" for suffix in ("safetensors", "pt")}
    save_file(state, files["safetensors"])
    torch.save(state, files["pt"])
    return files


def memory(field: str) -> int:
    """Bytes that the kernel says of this process: VmRSS now, VmHWM at most. (ru_maxrss starts at the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_growth(before: int, file: Path) -> float:
    """Of the resident set since it was `before`, as a multiple of the file's size."""
    return (memory("VmHWM") - before) / file.stat().st_size


def ours(file: Path) -> Figures:
    import jax

    from spatial_clip_jax.convert.load import load_clip
    from spatial_clip_jax.convert.source import find_source
    from spatial_clip_jax.convert.weights import read_leaves

    jax.block_until_ready(jax.device_put(np.zeros(3)))
    spec, before, start = find_source(file.parent).spec, memory("VmRSS"), time.perf_counter()
    clip = load_clip(file, spec=spec)
    whole, peak = time.perf_counter() - start, peak_growth(before, file)
    del clip
    expected, source = flatten_params(abstract_params(lambda rngs: Clip(spec, rngs=rngs))[1]), find_source(file, spec)
    start = time.perf_counter()
    leaves, _ = read_leaves(source.files, expected, source.naming, lambda _, array: jax.device_put(array))
    jax.block_until_ready(leaves)
    return {"peak": peak, "load_clip": whole, "reading": time.perf_counter() - start}


def theirs(file: Path) -> Figures:
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_pretrained(file.parent))
    model.to_empty(device="cpu")

    def load() -> float:
        start = time.perf_counter()
        model.load_state_dict(
            load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True, mmap=True)
        )
        return time.perf_counter() - start

    before, fresh = memory("VmRSS"), load()
    return {"fresh": fresh, "peak": peak_growth(before, file), "again": load()}


def measured(which: str, file: Path) -> Figures:
    """`ours` or `theirs` in a new process."""
    command = [sys.executable, "-m", "tests.convert.measure_loading", "--one", which, "--file", str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def measure(file: Path, repeats: int = 3) -> dict[str, Figures]:
    """The best of `repeats` alternating measurements of each, and the largest peak."""
    found: dict[str, list[Figures]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for which, figures in found.items():
            figures.append(measured(which, file))
    return {
        which: {name: (max if name == "peak" else min)(f[name] for f in figures) for name in figures[0]}
        for which, figures in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14, help="of the vision tower; 14 give 1.2 GB")
    parser.add_argument("--one", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(ours(options.file) if options.one == "ours" else theirs(options.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for suffix, file in write_checkpoint(Path(folder), large_spec(options.layers)).items():
            report(suffix, file.stat().st_size, **measure(file))


def report(suffix: str, size: int, ours: Figures, theirs: Figures) -> None:
    print(f".{suffix}: {size / 1e9:.2f} GB")
    print(f"  peak memory: {ours['peak']:.2f} x its size (bound {MEMORY_BOUND}); PyTorch's {theirs['peak']:.2f}")
    print(
        f"  load_clip: {ours['load_clip']:.2f} s; a second reading alone, in the same process: {ours['reading']:.2f} s"
    )
    for name in ("fresh", "again"):
        ratio = ours["reading"] / theirs[name]
        print(f"  PyTorch's {name}: {theirs[name]:.2f} s; ours {ratio:.2f} times that (bound {TIME_BOUND})")


if __name__ == "__main__":
    main()
