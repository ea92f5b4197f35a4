"""What a user gets wrong of the main job's settings: said in one line, before anything is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl.flags import FlagValues
from ml_collections import config_flags

from launch.train import main
from tests.launch.test_main_job import ROOT, WITHOUT_TABLE

# By the command itself: what it reads before there is a config, and one mistake in it.
OF_THE_COMMAND = {
    "--config.model=no/such/folder": "no checkpoint at 'no/such/folder'",
    "--config=configs/adapt/recover.py:model=nonsense": "model='nonsense'; valid: tiny, clip_b16",
    "--config.objectives.fusion_distilation.weight=1.0": "no setting 'fusion_distilation'; .*fusion_distillation",
    "--config.refiner.batch_size=4": "config.refiner has no setting 'batch_size'; it has .*adapter",
    "--config.optimizer.lr=1.0": "config.optimizer has no setting 'lr'; it has .*learning_rate",
}
REFUSED = {
    "--config.objectives.spatial_correlation.teacher=refinar": "unknown teacher 'refinar'; valid: fusion, .*refiner",
    "--config.objectives.spatial_correlation.teacher=average": "'average' needs config.optimizer.average",
    "--config.objectives.spatial_correlation.regions=grit": "boxes are one of grid, random, given, got 'grit'",
    "--config.adapter.variant=copi": "'copy' or 'residual'",
    "--config.adapter.blocks=2 --config.start=refiner": "config.refiner.adapter must be like config.adapter",
    "--config.start=average": "config.start must be 'tower' or 'refiner', got 'average'",
    "--config.adapter.readout=gem": "No read-out of the last block alone is called 'gem'. Valid names: .*maskclip",
    "--config.teacher.readout=gemm": "unknown read-out 'gemm' of the teacher; valid: average, refiner, plain",
    # Added to the (2,) of SMALL: absl adds up what is given of a tuple.
    "--config.teacher.segments=(1,)": r"segments must be a tuple of whole numbers above 1, got \(2, 1\)",
    "--config.teacher.windows=((0.125,0.5),)": r"teacher.windows=.*\(0.125, 0.5\).* do not fit: .*stride",
    "--config.refiner.steps=0": "in config.refiner, the stage before: config.steps is 0",
    "--config.teacher.rule=none": "rule 'none' has no windows",
    "--config.refiner.teacher.readout=refiner": "unknown read-out 'refiner' of the teacher; valid: average, plain",
    "--config.refiner.optimizer.name=linear": "Unknown optimizer 'linear'",
    "--config.refiner.objectives.anchor_distillation.anchors=1": "anchors must be a whole number from 2 .*, got 1",
    "--config.objectives.spatial_correlation.temperature=-1.0": "spatial_correlation: temperature must be a positive",
    "--config.teacher.rule=foo": "config.teacher: fusion rule 'foo' is unknown; choose one of affinity",
    "--config.optimizer.weight_decay=-1.0": "config.optimizer: weight_decay must be a number of at least 0, got -1.0",
    "--config.scale=0.3": "pictures of 19.2 pixels; they must be whole patches of 8",
    '--config.measure=True --config.benchmark.rows=("gemm",)': r"rows names \['gemm'\]; there are \['plain'",
    "--config.data.kind=folder": "data.path is empty",
    # Before the model, which may be gigabytes away.
    "--config.model=no/such --config.data.split=unlabelled": "the world 'mini' has no split 'unlabelled'; it has train",
    "--config.model=no/such --config.data.kind=tfds --config.data.path=/no/such": "/no/such is no TFDS dataset",
    "--config.model=no/such --config.evaluate_every=1 --config.checkpoint.best=evaluate/avarage": (
        "best names 'evaluate/avarage'; the evaluation of every stage gives .*evaluate/average.*evaluate/miou"
    ),
    "--config.data.processes=100000": "config.data.processes must be from 0 to .*, got 100000",
    "--config.track=tensorbord": r"config.track names \['tensorbord'\]; valid: tensorboard, wandb",
    "--config.profile.steps=-1": "config.profile: ProfileSettings.steps must be a whole number from 0",
    "--config.watchdog.seconds=.001": "config.watchdog: seconds must be 0, for no watchdog, or at least 1, got 0.001",
    "--config.evaluation.shown=65": "evaluation: EvaluationSettings.shown must be a whole number from 0 to 64, got 65",
    "--config.evaluate_every=1 --config.evaluation.data.kind=scenes": "data.kind is 'scenes'; valid: folder and tfds",
    "--config.evaluate_every=1 --config.evaluation.data.path=/no/such": "evaluation: There is no folder /no/such",
}
# Each case is a process of its own, split off one that has done the imports: they take longer than the refusal.
REFUSALS = """
import json, os, sys
import launch.train
for log, arguments in json.loads(sys.stdin.read()):
    if not (child := os.fork()):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["launch.train", *arguments]
        launch.train.cli.run(launch.train.main)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def arguments(given: str, data: Path) -> list[str]:
    return [*WITHOUT_TABLE, *given.split(), f"--config.data.dir={data}"]


def test_the_command_ends_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    logs = [tmp_path / f"{number}.log" for number in range(len(OF_THE_COMMAND))]
    cases = [
        (str(log), [*arguments(given, tmp_path), f"--workdir={tmp_path / 'run'}"])
        for log, given in zip(logs, OF_THE_COMMAND, strict=True)
    ]
    command = [sys.executable, "-c", REFUSALS]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(cases), capture_output=True, text=True, timeout=300)
    assert list(map(int, done.stdout.split())) == [1] * len(cases), done.stderr
    for log, says in zip(logs, OF_THE_COMMAND.values(), strict=True):
        err = log.read_text()
        assert re.search(says, err) and "error:" in err and "Traceback" not in err, err
        assert len(err.split("error:")[-1].strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", REFUSED)
def test_wrong_settings_are_told_in_one_line_and_nothing_is_written(
    given: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["launch.train", *arguments(given, data)]
    monkeypatch.setattr(sys, "argv", line)  # where ml_collections looks for --config.NAME
    flags = FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flags)
    flags(line)
    # What the command turns into a line and status 1.
    with pytest.raises((ValueError, OSError), match=REFUSED[given]) as told:
        main(flags.config.lock(), tmp_path / "run")
    assert len(str(told.value).splitlines()) == 1 and not (tmp_path / "run").exists()
