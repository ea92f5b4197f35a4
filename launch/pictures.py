"""The pictures that a config names: what is wrong with it is told before they, or a model, are opened."""

from pathlib import Path

from ml_collections import ConfigDict

from spatial_clip_jax.data.children import check_processes
from spatial_clip_jax.data.scenes.load import check_split, prepare
from spatial_clip_jax.data.sources import Source, check_source, open_source
from spatial_clip_jax.train.distributed import main_first


def check_pictures(data: ConfigDict) -> None:
    """ValueError or FileNotFoundError if there are no such pictures; a folder's are not listed, none is read."""
    check_processes("config.data.processes", data.processes, least=0)
    if data.kind == "scenes":
        check_split(data.world, data.split)
    else:
        check_source(data.to_dict())


def source_of(data: ConfigDict) -> Source:
    """The pictures; the bundled world is written first if it is not there."""
    if data.kind != "scenes":
        return open_source(data.to_dict())
    path = main_first("world", lambda: prepare(data.world, Path(data.dir)))
    return open_source({"kind": "tfds", "path": str(path), "split": data.split})
