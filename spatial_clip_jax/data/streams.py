"""The stream that suits a source."""

from typing import Any

from spatial_clip_jax.data.source import Source
from spatial_clip_jax.data.stream import PictureStream
from spatial_clip_jax.data.tfrecord import TfRecordSource
from spatial_clip_jax.data.tfrecord_stream import TfRecordStream

Stream = PictureStream | TfRecordStream


def open_stream(
    source: Source,
    batch_size: int,
    size: tuple[int, int],
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    boxes: int = 0,
    processes: int = 0,
    **settings: Any,
) -> Stream:
    """By tf.data for a dataset in TFRecord format, by Grain for all others; see `PictureStream` for what is asked.

    ValueError if a dataset in TFRecord format is asked for boxes or processes.
    """
    where = batch_size, size, seed, process_index, process_count
    if not isinstance(source, TfRecordSource):
        return PictureStream(source, *where, boxes=boxes, processes=processes, **settings)
    if boxes or processes:
        raise ValueError("data.boxes and data.processes need file_format='array_record', or a folder of pictures.")
    return TfRecordStream(source, *where, **settings)
