"""Builds a TFDS data set: hashes all pictures, finds those that come again, writes shards, describes them.

The lots, and so the order and the shards, depend on the source alone, not on the number of workers. All that is
finished lies in a folder of its own until the whole is, so a build that was ended goes on where it was.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.build.lots import Lot, Piece, lots, stamped
from spatial_clip_jax.data.build.pictures import Rule
from spatial_clip_jax.data.build.pool import Workers
from spatial_clip_jax.data.build.shards import FACTS, HASH, HASHES, SHARD, add_refused, features, hash_lot, write_shard
from spatial_clip_jax.data.children import check_processes

VERSION, WORK, OUT = "1.0.0", ".build", "out"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MADE_OF, REPORT = "made_of.json", "report.json"


@dataclass(frozen=True)
class Asked:
    """The data set's `name` and `split`, pictures a shard, worker processes, and which pictures are taken."""

    name: str
    split: str = "train"
    shard_pictures: int = 2000
    workers: int = 1
    rule: Rule = Rule()

    def __post_init__(self) -> None:
        if self.shard_pictures < 1:
            raise ValueError(f"--shard_pictures must be at least 1, got {self.shard_pictures}")
        check_processes("--workers", self.workers, least=1)
        for name in ("name", "split"):
            if not getattr(self, name).isidentifier():
                raise ValueError(
                    f"--{name} must be letters, digits and _, and begin with a letter, got {getattr(self, name)!r}"
                )


def build(pieces: Sequence[Piece], folder: Path, asked: Asked) -> dict[str, Any]:
    """Writes the data set `folder`/1.0.0; its report.

    Raises:
      ValueError: if the folder holds another data set or build, or no picture is sound.
      OSError: if the disk is full, or a worker was killed; the same call goes on.
    """
    # Who works changes nothing.
    settings = {name: value for name, value in asdict(asked).items() if name != "workers"}
    made_of = {"pictures": sum(map(len, pieces)), "source": stamped(pieces), **settings}
    work = folder / WORK
    if (folder / VERSION).exists():
        report = _known(folder / VERSION, made_of)
        shutil.rmtree(work, ignore_errors=True)  # a build that was ended at its very end
        return report
    _claim(work, made_of)
    parts = lots(pieces, asked.shard_pictures)
    try:
        with Workers(min(asked.workers, len(parts))) as workers:
            _work_through("hashing", workers, hash_lot, HASHES, work, parts, lambda _: ())
            repeated = _repeated(work, parts)
            _work_through("writing", workers, write_shard, FACTS, work, parts, lambda i: (repeated[i], asked.rule))
        report = _finish(work, len(parts), asked, made_of)
        os.rename(work / OUT, folder / VERSION)
    except OSError as error:
        if error.errno not in FULL and not any(os.strerror(code) in str(error) for code in FULL):
            raise
        raise OSError(f"{folder} is full ({error}): make room; the same command goes on from there") from error
    shutil.rmtree(work)
    return report


def _known(version: Path, made_of: dict[str, Any]) -> dict[str, Any]:
    """The report of a build that is done."""
    report = _read(version / REPORT) if (version / REPORT).is_file() else {}
    if report.get("made_of") != made_of:
        raise ValueError(f"{version} holds another data set: give another folder, or remove it.")
    return report


def _claim(work: Path, made_of: dict[str, Any]) -> None:
    path = work / MADE_OF
    if path.is_file():
        before = _read(path)
        changed = sorted(name for name in made_of if made_of[name] != before.get(name))
        if changed:
            raise ValueError(
                f"{work} holds another build, of which {', '.join(changed)} differ: go on with the same command, "
                "or remove the folder to start over."
            )
    work.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(made_of).encode())


def _read(path: Path) -> dict[str, Any]:
    """What a build has written down."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged: remove {path.parent} and build again.")


def _work_through(
    what: str,
    workers: Workers,
    function: Callable[..., None],
    result: str,
    work: Path,
    parts: Sequence[Lot],
    more: Callable[[int], tuple[Any, ...]],
) -> None:
    """Calls `function` for every lot whose `result` is not there yet."""
    left = [i for i in range(len(parts)) if not (work / result.format(i)).exists()]
    jobs = ((work, i, parts[i], *more(i)) for i in left)
    sizes, total = [len(parts[i]) for i in left], sum(map(len, parts))
    with tqdm(desc=what, unit=" pictures", total=total, initial=total - sum(sizes)) as bar:
        workers.run(function, jobs, lambda place: bar.update(sizes[place]))


def _repeated(work: Path, parts: Sequence[Lot]) -> list[Bool[np.ndarray, " n"]]:
    """Of each lot, the pictures whose bytes were met before, in the order of all."""
    hashes = [_hashes(work / HASHES.format(i), len(lot)) for i, lot in enumerate(parts)]
    keys = np.concatenate(hashes).view(np.uint64)
    order = np.lexsort((keys[:, 0], keys[:, 1]))  # stable, so the first of equals comes first
    again = np.zeros(len(keys), bool)
    again[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return np.split(again, np.cumsum([len(own) for own in hashes])[:-1])


def _hashes(path: Path, pictures: int) -> UInt8[np.ndarray, "n 16"]:
    found = np.fromfile(path, np.uint8)
    if len(found) != pictures * HASH:
        raise _damaged(path)
    return found.reshape(pictures, HASH)


def _finish(work: Path, count: int, asked: Asked, made_of: dict[str, Any]) -> dict[str, Any]:
    """Gives the shards their names and describes them; may be repeated after it was ended at any place."""
    facts = [_read(work / FACTS.format(i)) for i in range(count)]
    refused: dict[str, Any] = {}
    for fact in facts:
        add_refused(refused, fact["refused"])
    kept = [i for i, fact in enumerate(facts) if fact["records"]]
    if not kept:
        raise ValueError(f"none of {made_of['pictures']} pictures can be taken: {refused}")
    (work / OUT).mkdir(exist_ok=True)
    info = _split_info(work / OUT, [facts[i] for i in kept], asked)
    for i, path in zip(kept, info.filepaths, strict=True):
        if (work / SHARD.format(i)).exists():
            os.replace(work / SHARD.format(i), Path(path))
    _describe(work / OUT, info)
    written = {"pictures": sum(info.shard_lengths), "shards": len(kept), "bytes": info.num_bytes}
    report = {"written": written, "refused": dict(sorted(refused.items())), "made_of": made_of}
    (work / OUT / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _split_info(out: Path, facts: Sequence[dict[str, Any]], asked: Asked) -> Any:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        dataset_name=asked.name, data_dir=out, split=asked.split, filetype_suffix="array_record"
    )
    lengths, size = [fact["records"] for fact in facts], sum(fact["bytes"] for fact in facts)
    return tfds.core.SplitInfo(name=asked.split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def _describe(out: Path, info: Any) -> None:
    """dataset_info.json and features.json, by TFDS itself, which would need TensorFlow to look at the first record."""
    import tensorflow_datasets as tfds

    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features=features(),
        split_infos=[info],
        version=VERSION,
        filename_template=info.filename_template,
        check_data=False,
        description="Pictures, as they were found, and what they were called.",
    )
