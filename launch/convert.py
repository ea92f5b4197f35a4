"""Reads a checkpoint of any known kind once, checks it, and writes it in a form that is quick to load.

SOURCE is what `load` takes: a folder, a file, or a model of the Hugging Face Hub.

python -m launch.convert SOURCE DEST [--to=native|huggingface|open_clip] [--spec=NAME]
python -m launch.convert SOURCE --inspect
"""

import logging
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from launch.cli import quiet_logs, user_errors
from spatial_clip_jax.api import located
from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.export import save_clip, save_native, save_open_clip
from spatial_clip_jax.convert.families import registry
from spatial_clip_jax.convert.files import headers
from spatial_clip_jax.convert.inspect import inspect_checkpoint, report
from spatial_clip_jax.convert.load import read_checkpoint, read_stored
from spatial_clip_jax.convert.source import find_source
from spatial_clip_jax.convert.verify import checksum, differences
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.spec import ClipSpec

# Of the largest value of PyTorch's embedding: fp32 rounding over a deep tower stays far below, another geometry above.
MAX_DIFFERENCE = 1e-3
WRITERS: dict[str, Callable[..., None]] = {"native": save_native, "huggingface": save_clip, "open_clip": save_open_clip}

INSPECT = flags.DEFINE_bool("inspect", False, "Only say what is in SOURCE.")
TO = flags.DEFINE_enum("to", "native", list(WRITERS), "The form to write.")
SPEC = flags.DEFINE_string("spec", None, "The geometry's name, for a lone file, which does not say it.")


def main(arguments: list[str]) -> None:
    """Inspects or converts."""
    if len(arguments) != (2 if INSPECT.value else 3):
        raise app.UsageError("give SOURCE and DEST, or SOURCE and --inspect")
    quiet_logs()
    logging.getLogger("spatial_clip_jax.models").setLevel(logging.WARNING)  # which kernel attention runs on
    with user_errors():
        if INSPECT.value:
            print(report(inspect_checkpoint(located(arguments[1]))))
        else:
            convert(located(arguments[1]), Path(arguments[2]), TO.value, SPEC.value)


def convert(source: Path, destination: Path, form: str, spec_name: str | None) -> None:
    """Reads, compares with PyTorch where it can, writes, reads back, and prints how sure the conversion is."""
    if destination.exists() and destination.resolve() in (source.resolve(), source.resolve().parent):
        raise ValueError(f"{destination} is where the source lies: give another folder.")
    found = find_source(source, None if spec_name is None else named_spec(spec_name))
    print(f"{source}: {found.naming.title}")
    _check_form(found.spec, form)
    pieces = [tables.to_ours(key, found.naming.table) for key in headers(found.files)]
    with tqdm(desc="reading", unit=" weights", total=sum(map(len, pieces))) as bar:
        spec, params, tokenizer, stored = read_stored(source, found.spec, progress=bar.update)
    compared = differences(source, spec, params)
    for tower, (difference, scale) in (compared or {}).items():
        print(f"{tower} tower against PyTorch: max abs difference {difference:.2e}, of embeddings up to {scale:.2g}")
        if not difference <= MAX_DIFFERENCE * scale:
            raise ValueError(f"{source} is not what its configuration says; nothing was written. See --inspect.")
    kept = {} if form == "native" else {"form": stored}  # ours is fp32, which loads without conversion
    WRITERS[form](destination, spec, params, tokenizer, **kept)
    if tokenizer is None and spec.text is not None:
        print("no tokenizer.json came with the weights: texts need load(..., tokenizer=FILE)")
    print(f"written: {destination} ({form})")
    written = checksum(read_checkpoint(destination)[1])
    if written != checksum(params):
        raise ValueError(f"{destination} does not hold what was read from {source}: is the disk sound?")
    if compared is None:
        print(f"checksum of the mapped weights, the same in {destination}: {written}")


def _check_form(spec: ClipSpec, form: str) -> None:
    """ValueError, before anything is read, where that form has no words for this architecture."""
    huggingface, open_clip = form == "huggingface", form == "open_clip"
    absent = (huggingface and not registry.written_as(spec)) or (open_clip and not registry.written_by_open_clip(spec))
    if absent:
        raise ValueError(f"{form} has no words for this architecture or these sizes; --to=native takes any.")


if __name__ == "__main__":
    app.run(main)
