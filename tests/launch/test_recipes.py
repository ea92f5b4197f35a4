"""The command that trains recipes side by side, shrunk: what it writes, and that nothing is done twice."""

import json
import logging
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs.evaluate import recipes as shipped
from launch.evaluate import main
from launch.progress import Job, work_through
from launch.train import LOOP_SECONDS, _loop_seconds
from launch.variations import overridden, read_variations
from spatial_clip_jax.data.scenes.load import world_scales
from spatial_clip_jax.evaluate.benchmark import METRICS

COPY, RESIDUAL, BROKEN = (f"spar:variant={variant}" for variant in ("copy", "residual", "copi"))

# One input size, for each is compiled by itself.
SCALES = dict(scales=(1.0,), teacher_scales=(1.0,))


def small(data: Path, **changes: object) -> ConfigDict:
    config = shipped.get_config("steps=2,batch_size=4,world=mini")
    config.update(
        recipes=(COPY, RESIDUAL, BROKEN),
        seeds=(0, 1),
        data=dict(dir=str(data)),
        shared=(
            ("scale", 1.0),
            ("teacher.windows", ((0.5, 0.5),)),
            ("adapter.blocks", 1),
        ),
        teachers=dict(sliding=dict(windows=((0.5, 0.5),))),
        benchmark=dict(rows=("plain", "maskclip", "sliding"), validation=4, test=4, singles=4, **SCALES),
        inference=dict(scale=1.0, batch_sizes=(1,), repetitions=1),
        claims=dict(default=COPY, read_outs=("maskclip",), recipes=(RESIDUAL,), teachers=("sliding",)),
        generalise=(COPY,),
        second_world="mini",
        **changes,
    )
    return config.lock()


class Interrupt(logging.Handler):
    """Ctrl-C at the first line that names a job."""

    def __init__(self, job: str) -> None:
        super().__init__()
        self.job = job

    def emit(self, record: logging.LogRecord) -> None:
        if self.job in record.getMessage():
            raise KeyboardInterrupt


def kept_files(workdir: Path) -> dict[Path, int]:
    found = (path for name in ("measured*.json", "trained.json", "adapter.safetensors") for path in workdir.rglob(name))
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A comparison that was interrupted before its last run, and gone on with."""
    data, workdir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("recipes")
    logger, interrupt = logging.getLogger("launch.progress"), Interrupt(f"{RESIDUAL}, seed 1")
    logger.setLevel(logging.INFO)
    logger.addHandler(interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(small(data), workdir)
    logger.removeHandler(interrupt)
    before = kept_files(workdir)
    assert {path.parent.parent.name for path in before} >= {COPY, RESIDUAL}
    (workdir / "recipes.json").rename(workdir / "interrupted.json")
    (workdir / "recipes.md").rename(workdir / "interrupted.md")
    with pytest.raises(ValueError, match=f"2 failed.*{BROKEN}, seed 0; {BROKEN}, seed 1$"):
        main(small(data), workdir)
    after = kept_files(workdir)
    assert before.items() <= after.items() and workdir / "runs" / RESIDUAL / "1" / "measured.json" in after
    assert workdir / "runs" / RESIDUAL / "1" / "measured.json" not in before
    return workdir


def test_teachers_choose_among_the_same_input_sizes_as_all_rows():
    assert shipped.get_config().benchmark.teacher_scales == world_scales("quickstart")


@pytest.mark.slow
def test_what_is_written(finished):
    content = json.loads((finished / "recipes.json").read_text())
    rows = content["rows"]
    assert list(rows) == ["global embedding", "plain", "maskclip", "sliding", COPY, RESIDUAL]
    for row in (COPY, RESIDUAL):
        assert [run["seed"] for run in rows[row]["runs"]] == [0, 1] and rows[row]["trained"]
        assert {*METRICS, "average", "training_seconds", "teacher_seconds", "inference_ratio_b1"} <= set(
            rows[row]["mean"]
        )
        assert rows[row]["mean"]["zero_shot_top1"] == rows["plain"]["mean"]["zero_shot_top1"]
        pointing = [run["scores"]["pointing"] for run in rows[row]["runs"]]
        assert rows[row]["mean"]["pointing"] == pytest.approx(sum(pointing) / 2)
    assert rows["plain"]["runs"][0]["commit"] == content["environment"].get("commit", "")
    assert rows["plain"]["runs"][0]["settings"]["scale"] and "training_seconds" not in rows["plain"]["mean"]
    assert content["settings"]["budget"]["steps"] == 2 and content["environment"]["jax"]
    assert set(content["failed"]) == {f"{BROKEN}, seed 0", f"{BROKEN}, seed 1"}
    verdicts = {claim["text"]: claim["holds"] for claim in content["claims"]}
    assert [holds for text, holds in verdicts.items() if "zero_shot" in text] == [True]
    unknown = [text for text, holds in verdicts.items() if holds is None and "gain" not in text]  # one may have none
    assert len(unknown) == len(shipped.ORDERINGS) and all("; missing: " in text for text in unknown)


@pytest.mark.slow
def test_what_is_written_when_it_is_interrupted(finished):
    content = json.loads((finished / "interrupted.json").read_text())
    assert {row: len(content["rows"][row]["runs"]) for row in (COPY, RESIDUAL)} == {COPY: 2, RESIDUAL: 1}
    assert set(content["failed"]) == {f"{BROKEN}, seed 0"} and content["second_world"] is None
    claims = [claim for claim in content["claims"] if "best published recipe" in claim["text"]]
    assert [(claim["holds"], f"{RESIDUAL} (1 of 2 runs)" in claim["text"]) for claim in claims] == [(None, True)]
    lines = (finished / "interrupted.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in lines if line.startswith(("| row", f"| {RESIDUAL}"))] == ["n", "1"]


@pytest.mark.slow
def test_the_table_and_the_report_say_the_same(finished):
    text, report = (finished / "recipes.md").read_text(), (finished / "report.html").read_text()
    rows = json.loads((finished / "recipes.json").read_text())["rows"]
    for shown in (f"{rows['sliding']['mean']['miou']:.3f}", RESIDUAL, "Claims", f"{BROKEN}, seed 1", "copi"):
        assert shown in text and shown in report
    assert report.count('class="plot"') == 8 + 1 + 3 and "<script" not in report and "http" not in report


@pytest.mark.slow
def test_on_the_same_world_all_of_the_gain_is_kept(finished):
    content = json.loads((finished / "recipes.json").read_text())
    there = content["second_world"]
    assert there["rows"]["plain"]["mean"]["average"] == content["rows"]["plain"]["mean"]["average"]
    assert all(share == pytest.approx(1) for shares in there["kept"][COPY].values() for share in shares)
    assert set(there["kept"][COPY]) == {"plain", "maskclip"}


@pytest.mark.slow
def test_a_run_is_an_adapter_to_load(finished):
    import spatial_clip_jax as scj

    model = scj.load("tiny", adapter=finished / "runs" / COPY / "1")
    measured = json.loads((finished / "runs" / COPY / "1" / "measured.json").read_text())
    assert model.settings.box_threshold == measured["settings"]["box_threshold"]
    assert model.training.benchmark["adapter"] == measured["scores"]


def test_a_runs_time_is_that_of_all_its_stages():
    config = ConfigDict(dict(steps=10, batch_size=4))
    alone = _loop_seconds(config, {"images_per_second": 8.0}, {})
    assert alone == 5.0 and _loop_seconds(config, {"images_per_second": 8.0}, {LOOP_SECONDS: 3.0}) == 8.0
    assert _loop_seconds(config, {"images_per_second": 8.0}, {LOOP_SECONDS: 0.0}) == 0.0  # one was too short to tell
    assert _loop_seconds(config, {"images_per_second": 0.0}, {LOOP_SECONDS: 3.0}) == 0.0


@pytest.mark.slow
def test_the_teachers_maps_are_shared(finished):
    assert len(list((finished / "teachers").iterdir())) == 1
    rows = json.loads((finished / "recipes.json").read_text())["rows"]
    assert all(run["costs"]["teacher_seconds"] > 0 for row in (COPY, RESIDUAL) for run in rows[row]["runs"])


def test_failures_are_named_and_the_others_go_on(caplog):
    done = []

    def diverge() -> bool:
        raise FloatingPointError("diverged at step 3")

    def fill() -> bool:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    jobs = [Job("run", "a", lambda: not done.append("a")), Job("run", "b", diverge), Job("run", "c", fill)]
    jobs.append(Job("run", "d", lambda: bool(done.append("d"))))
    failed: dict[str, str] = {}
    with caplog.at_level(logging.INFO, "launch.progress"):
        work_through(jobs, failed, lambda: done.append("written"))
    assert failed == {"b": "diverged at step 3", "c": "RESOURCE_EXHAUSTED: out of memory"}
    assert done == ["a", "written", "d"]
    assert "[4 of 4] d, less than a minute left" in caplog.text and "d: done before" in caplog.text


def test_faults_of_the_program_are_no_failures_of_a_row():
    def fault() -> bool:
        raise TypeError("a fault")

    with pytest.raises(TypeError):
        work_through([Job("run", "a", fault)], {}, lambda: None)


def test_variations_name_their_rows_and_share_what_is_the_same(tmp_path):
    axes = (("blocks", (("1", {"adapter.blocks": 1}), ("2", {"adapter.blocks": 2, "scale": 1.0}))),)
    found = read_variations(small(tmp_path, axes=axes))
    assert found.axes == {"blocks": {"1": COPY, "2": "blocks: 2"}}
    assert [config.adapter.blocks for config in found.configs.values()] == [1, 1, 1, 2]
    assert {config.steps for config in found.configs.values()} == {2}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"adapter.blocs": 1}, "no 'blocs' there; there is blocks"),
        ({"steps.more": 1}, "no 'more' there; there is no parts"),
        ({"steps": "many"}, "do not fit.*'steps'"),
    ],
)
def test_overrides_that_fit_nothing_are_named(overrides, says):
    with pytest.raises(ValueError, match=says):
        overridden(ConfigDict(dict(steps=1, adapter=dict(blocks=2))), overrides)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(recipes=("recuver",)), "there is no configs/adapt/recuver.py; there are clipself, .*recover"),
        (dict(recipes=("configs.quickstart:variants=copy",)), "unknown config argument 'variants'"),
        (dict(claims=dict(default="recuver")), "config.claims.default='recuver' is none of spar"),
        (dict(recipes=()), "config.recipes is empty"),
        (dict(seeds=(0, 0)), "seeds must be different"),
        (dict(second_world="moon"), "no world 'moon'"),
    ],
)
def test_wrong_settings_end_before_any_work(tmp_path, changes, says):
    config = small(tmp_path).unlock()
    config.update(changes)
    with pytest.raises(ValueError, match=says):
        main(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
