"""A million records: opened, ordered and resumed in the middle in seconds, in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from tests.data.test_decode import encode

RECORDS, SHARDS = 1_000_000, 16
SECONDS, BYTES = 10.0, 2**30

READ = """
import json, resource, sys, time
import numpy as np
from itertools import islice
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream
start = time.monotonic()
source = open_source({"kind": "tfds", "path": sys.argv[1], "split": "train"})
stream = PictureStream(source, 64, (8, 8), 0)
stream.set_state({"position": 500_032})
taken = [batch["index"].tolist() for batch in islice(stream, 2)]
seconds, held = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"records": len(source), "seconds": seconds, "bytes": held, "taken": taken}))
"""


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny pictures; writing them is not what is timed."""
    folder = tmp_path_factory.mktemp("million") / "1.0.0"
    folder.mkdir()
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
    serializer = ExampleSerializer(features.get_serialized_info())
    record = serializer.serialize_example({"image": encode(Image.new("RGB", (8, 8), "red"), "PNG")})
    template = tfds.core.ShardedFileTemplate(
        dataset_name="million", data_dir=folder, split="train", filetype_suffix="array_record"
    )
    lengths = [RECORDS // SHARDS] * SHARDS
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=lengths, num_bytes=RECORDS * len(record), filename_template=template
    )
    for path in info.filepaths:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(RECORDS // SHARDS):
            writer.write(record)
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=[info], filename_template=template, check_data=False
    )
    return folder


@pytest.mark.slow
def test_a_million_records_are_resumed_in_the_middle_in_seconds(million: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", READ, str(million)]
    runs = [subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    found, again = (json.loads(run.stdout) for run in runs)
    assert found["records"] == RECORDS and found["taken"] == again["taken"]
    assert len({index for batch in found["taken"] for index in batch}) == 128
    assert found["seconds"] < SECONDS and found["bytes"] < BYTES
