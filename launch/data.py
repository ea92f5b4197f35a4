"""Brings pictures into the form that training streams fastest: a sharded TFDS data set, in ArrayRecord format.

SOURCE is a folder of pictures, of .tar (WebDataset) or of .parquet files, one such file, or a .txt file of URLs whose
local copies lie in --copies. DEST/1.0.0 is what --config.data.kind=tfds --config.data.path names. Damaged, tiny and
huge pictures, and those whose bytes came before, are left out, counted and named in report.json. A build that was ended
goes on with the same command.

python -m launch.data build SOURCE DEST [--short_side=512 --quality=90] [--workers=N]
"""

import os
from pathlib import Path
from typing import Any

from absl import app, flags

from launch.cli import quiet_logs, user_errors
from spatial_clip_jax.data.build.build import VERSION, Asked, build
from spatial_clip_jax.data.build.inputs import find_pieces
from spatial_clip_jax.data.build.pictures import Rule
from spatial_clip_jax.train.workdir import held_workdir

NAME = flags.DEFINE_string("name", None, "The data set's name; that of the folder DEST if it is not given.")
SPLIT = flags.DEFINE_string("split", "train", "The split's name.")
SHORT_SIDE = flags.DEFINE_integer("short_side", 0, "Pictures with a longer one are made so small; 0 keeps all bytes.")
QUALITY = flags.DEFINE_integer("quality", 90, "Of the JPEGs that are made smaller.")
LEAST_SIDE = flags.DEFINE_integer("least_side", 16, "Pictures with a shorter side are refused.")
SHARD_PICTURES = flags.DEFINE_integer("shard_pictures", 2000, "Pictures a shard.")
WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Worker processes.")
COLUMN = flags.DEFINE_string("column", "image", "Of parquet files, the column with the encoded pictures.")
COPIES = flags.DEFINE_string("copies", None, "Of a list of URLs, the folder with the downloaded files.")


def main(arguments: list[str]) -> None:
    """Builds."""
    if len(arguments) != 4 or arguments[1] != "build":
        raise app.UsageError("give: build SOURCE DEST")
    quiet_logs()
    source, destination = (Path(argument).expanduser() for argument in arguments[2:])
    with user_errors():
        rule = Rule(SHORT_SIDE.value, QUALITY.value, LEAST_SIDE.value)
        name = NAME.value or destination.resolve().name
        asked = Asked(name, SPLIT.value, SHARD_PICTURES.value, WORKERS.value, rule)
        pieces = find_pieces(source, COLUMN.value, Path(COPIES.value).expanduser() if COPIES.value else None)
        with held_workdir(destination):
            if (destination / VERSION).exists():
                print(f"{destination / VERSION} is there already: nothing is done if it is of the same pictures")
            report = build(pieces, destination, asked)
        print_report(report, destination / VERSION, asked.split)


def print_report(report: dict[str, Any], folder: Path, split: str) -> None:
    """What was written, what was refused and why, and how to train on it."""
    written = report["written"]
    print(f"written: {written['pictures']} pictures in {written['shards']} shards, {written['bytes'] / 1e6:.1f} MB")
    for kind, found in report["refused"].items():
        print(f"refused, {kind}: {found['pictures']}, such as {', '.join(found['first'][:3])}")
    print(f"all of it: {folder / 'report.json'}")
    print(f"to train on it: --config.data.kind=tfds --config.data.path={folder} --config.data.split={split}")


if __name__ == "__main__":
    app.run(main)
