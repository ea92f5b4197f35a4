"""The main job as a user runs it, shrunk: what it writes, that a kill loses nothing, that a mesh changes nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import spatial_clip_jax as scj
from spatial_clip_jax.models.params import flatten_params

ROOT = Path(__file__).parents[2]
STAGES = ("refiner", ".")  # their folders below the workdir; each takes half of the steps
SMALL = (
    "--config=configs/adapt/recover.py:world=mini,batch_size=8,steps=8",
    "--config.scale=1.0",
    "--config.adapter.blocks=1",
    "--config.teacher.windows=((0.5, 0.5),)",
    "--config.teacher.segments=(2,)",
    "--config.refiner.adapter.blocks=1",
    "--config.refiner.teacher.windows=((0.5, 0.5),)",
    "--config.benchmark.fusion.windows=((0.5, 0.5),)",
    "--config.checkpoint.every_steps=1",
    "--config.log_every=1",
)
WITHOUT_TABLE = (*SMALL, "--config.measure=False", "--config.track=")


def start(data: Path, workdir: Path, *settings: str, devices: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.train", *settings, f"--config.data.dir={data}", f"--workdir={workdir}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def adapter(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "export" / "adapter.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An uninterrupted run on one device, with its table."""
    workdir = tmp_path_factory.mktemp("whole")
    rows = (
        '--config.benchmark.rows=("plain", "fusion", "adapter", "adapter+fusion")',
        "--config.benchmark.teacher_scales=(1.0,)",
    )
    looks = ("--config.evaluate_every=2", "--config.evaluation.pictures=8", "--config.evaluation.shown=2")
    out = finish(start(data, workdir, *SMALL, *rows, *looks))
    assert "adapter+fusion" in out and "global embedding" in out
    return workdir


def test_what_is_written(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert set(metrics["benchmark"]) == {"plain", "fusion", "adapter", "adapter+fusion"}
    names = {"pointing", "box_iou50", "miou", "region_top1", "relation_accuracy", "part_pointing", "zero_shot_top1"}
    for scores in metrics["benchmark"].values():
        assert names <= set(scores) and all(0 <= value <= 1 for value in scores.values())
    assert metrics["benchmark"]["adapter"]["zero_shot_top1"] == metrics["benchmark"]["plain"]["zero_shot_top1"]
    assert {"steps", "images_per_second", "data_wait_fraction", "corrupt_records"} <= set(metrics["train"])
    assert {"images_per_second_per_device", "teraflops_per_second_per_device"} <= set(metrics["train"])
    assert metrics["train"]["peak_memory_bytes"] > 1e8
    assert metrics["environment"]["jax"]
    for stage in STAGES:
        curve = [json.loads(line) for line in (whole / stage / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in curve if "loss" in row]
        assert {"cosine", "correlation_divergence", "loss", "longest_wait_ms", "memory_bytes"} <= set(steps[-1])
        saved = sum(path.stat().st_size for path in (whole / stage / "checkpoints" / "4").rglob("*") if path.is_file())
        trained = (whole / "export" / "adapter.safetensors").stat().st_size  # AdamW keeps two more of each number
        assert 2 * trained < saved < 3.2 * trained, "the frozen tower is in no checkpoint"
    report = (whole / "report.html").read_text()
    assert (
        "adapter+fusion" in report and "data:image/png;base64," in report and "http" not in report.split("</style>")[1]
    )
    assert list((whole / "events").iterdir()) and (whole / "figure.png").stat().st_size > 10_000


def test_the_adapter_is_looked_at_as_training_goes(whole):
    """Every second step: the scores that a table has, and a picture, once each."""
    for stage in STAGES:
        rows = [json.loads(line) for line in (whole / stage / "metrics.jsonl").read_text().splitlines()]
        looks = {row["step"]: row for row in rows if "evaluate/average" in row}
        assert list(looks) == [2, 4] and len(looks) == sum("evaluate/average" in row for row in rows)
        for row in looks.values():
            parts = [
                row[f"evaluate/{name}"] for name in ("pointing", "box_iou50", "miou", "region_top1", "part_pointing")
            ]
            assert row["evaluate/average"] == pytest.approx(sum(parts) / 5) and all(0 <= part <= 1 for part in parts)
        pictures = sorted((whole / stage / "pictures").iterdir())
        assert [path.name for path in pictures] == ["step-2.png", "step-4.png"]
        before, after = (np.asarray(Image.open(path)) for path in pictures)
        # Two rows of four columns: what does not change is the same to the pixel, and the student is the last.
        assert before.shape == after.shape and before.shape[1] > 4 * 224
        changed = np.nonzero((before != after).any((0, 2)))[0]
        assert changed.min() >= 3 * 232 and len(changed) > 100


def test_the_export_says_what_it_is(whole):
    """Its card has the run's own table, and names no folder of this machine."""
    text, record = (whole / "export" / "README.md").read_text(), (whole / "export" / "training.json").read_text()
    scores = json.loads((whole / "metrics.json").read_text())["benchmark"]
    assert f"| adapter | {scores['adapter']['pointing']:.3f} |" in text and "4 steps of 8" in text
    assert json.loads(record)["benchmark"] == scores and json.loads(record)["pictures"] > 0
    assert str(whole.parent) not in text + record


def test_the_clip_itself_is_bit_equal(whole):
    before, after = (flatten_params(scj.load(source).params) for source in ("tiny", whole / "export"))
    assert before.keys() == {path for path in after if path[0] != "adapter"}
    for path, weight in before.items():
        np.testing.assert_array_equal(after[path], weight, err_msg="/".join(path))


def test_export_command(whole, tmp_path):
    def export(*options: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "launch.export",
            f"--adapter={whole}",
            f"--folder={tmp_path / 'out'}",
            *options,
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = export("--onnx")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "dense.onnx").stat().st_size > 1_000_000
    assert (tmp_path / "out" / "README.md").read_text() == (whole / "export" / "README.md").read_text().replace(
        "export", "out"
    )
    assert export("--merge=0.5").returncode == 0
    assert not (tmp_path / "out" / "adapter.json").exists() and not (tmp_path / "out" / "dense.onnx").exists()
    failed = export("--merge=2")
    assert failed.returncode == 1 and "from 0 to 1, got 2.0" in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize("stage", [pytest.param("refiner", marks=pytest.mark.slow), "."])
def test_killed_and_resumed_is_bit_equal(whole, data, tmp_path, stage):
    process = start(data, tmp_path, *WITHOUT_TABLE)
    deadline = time.time() + 240
    while not list((tmp_path / stage).glob("checkpoints/2/**/commit_success.txt")) and time.time() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "checkpoints").exists() == (stage == ".") and not (tmp_path / "export").exists()
    _, err = (resumed := start(data, tmp_path, *WITHOUT_TABLE)).communicate(timeout=300)
    assert resumed.returncode == 0 and "going on from the checkpoint" in err, err[-3000:]
    expected, found = adapter(whole), adapter(tmp_path)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_a_mesh_of_four_trains_the_same(whole, data, tmp_path):
    mesh = (
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
        '--config.sharding=((".*kernel", "fsdp(0)"), (".*", "replicate"))',
    )
    looks = ("--config.evaluate_every=4", "--config.evaluation.pictures=8")
    finish(start(data, tmp_path, *WITHOUT_TABLE, *mesh, *looks, devices=4))
    assert (tmp_path / "pictures" / "step-4.png").is_file() and "evaluate/average" in (
        tmp_path / "metrics.jsonl"
    ).read_text()
    expected, found = adapter(whole), adapter(tmp_path)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_your_own_pictures(data, tmp_path):
    """The README's command for a folder of pictures, one in twenty of which is damaged."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    sizes = [(60, 90), (200, 100), (64, 64), (33, 70), (80, 80), (64, 90)]
    for i in range(19):
        pixels = rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / ("more" if i % 2 else ".") / f"{i}.png")
    whole = (tmp_path / "pictures" / "0.png").read_bytes()
    (tmp_path / "pictures" / "bad.png").write_bytes(whole[: len(whole) // 2])
    own = ("--config.data.kind=folder", f"--config.data.path={tmp_path / 'pictures'}", "--config.model=tiny")
    held = tmp_path / "held_out"
    held.mkdir()
    for path in sorted((tmp_path / "pictures").glob("*.png"))[:2]:
        path.rename(held / path.name)
    looks = ("--config.evaluate_every=2", "--config.evaluation.pictures=10", "--config.evaluation.shown=1")
    settings = (*WITHOUT_TABLE, *own, *looks, f"--config.evaluation.data.path={held}")
    strict = start(data, tmp_path / "strict", *WITHOUT_TABLE, *own, "--config.data.max_corrupt_fraction=0.01")
    finish(start(data, tmp_path / "run", *settings, "--config.data.max_corrupt_fraction=0.1"))
    for stage in STAGES:
        rows = [json.loads(line) for line in (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines()]
        found = [row["evaluate/loss"] for row in rows if "evaluate/loss" in row]
        assert len(found) == 2 and found[1] < found[0]  # what is learned holds on pictures that are not trained on
        assert "evaluate/cosine" in rows[-1] and (tmp_path / "run" / stage / "pictures" / "step-4.png").is_file()
    assert scj.load("tiny", adapter=tmp_path / "run").localize(held / "0.png", ["a star"])
    _, err = strict.communicate(timeout=300)
    assert strict.returncode == 1 and "Traceback" not in err, err[-3000:]
    assert re.search(r"1 of \d+ records are corrupt, more than max_corrupt_fraction = 0.01.*bad.png", err), err[-3000:]
    assert [row for row in rows if "loss" in row][-1]["corrupt_records"] == 1


def test_a_workdir_of_another_run_is_refused(whole, data):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    _, err = (process := start(data, whole, *SMALL, "--config.seed=7")).communicate(timeout=120)
    assert process.returncode == 1 and "seed" in err and "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
