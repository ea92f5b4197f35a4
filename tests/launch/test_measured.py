"""What is kept of runs and measurements: used again where it was made of the same, and made anew where not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from launch import measured
from launch.measured import kept, read_kept
from launch.train import LOOP_SECONDS, TEACHER_SECONDS


def test_what_was_made_of_other_settings_or_is_damaged_is_made_anew(tmp_path):
    file, made = tmp_path / "row" / "measured.json", []

    def make() -> dict[str, int]:
        made.append(1)
        return {"value": len(made)}

    assert kept(file, {"scale": 1.0}, make) and not kept(file, {"scale": 1.0}, make)
    assert kept(file, {"scale": 2.0}, make) and read_kept(file, {"scale": 1.0}) is None
    file.write_text('{"of": {"scale"')
    assert kept(file, {"scale": 2.0}, make) and read_kept(file, {"scale": 2.0})["value"] == 3


def a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., object], list[str]]:
    """`trained` in one folder, where training writes a file, and a list of what was called."""
    calls: list[str] = []

    class Adapted:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir()

    def adapt(config: ConfigDict, run: Path, _: Path) -> tuple[Adapted, dict[str, float]]:
        calls.append(f"adapt, with {', '.join(sorted(path.name for path in run.iterdir()))}")
        (run / "checkpoints").touch()
        if config.steps == 13:
            raise FloatingPointError
        return Adapted(), {LOOP_SECONDS: 5.0, TEACHER_SECONDS: 1.0}

    monkeypatch.setattr(measured, "adapt", adapt)
    monkeypatch.setattr(measured, "load", lambda model, run: calls.append("load"))

    def run(**settings: object) -> object:
        config = ConfigDict(dict(model="tiny", steps=2, measure=True) | settings)
        return measured.trained(config, tmp_path / "run", tmp_path / "teachers")

    return run, calls


def test_a_run_whose_export_is_lost_is_gone_on_with(tmp_path, monkeypatch):
    run, calls = a_run(tmp_path, monkeypatch)
    run()
    loads = iter([ValueError("truncated"), None])

    def load(model: str, run: Path) -> None:
        if fault := next(loads):
            raise fault

    monkeypatch.setattr(measured, "load", load)
    (tmp_path / "run" / "export").rmdir()
    run()
    again = "adapt, with checkpoints, started.json"
    assert calls == ["adapt, with started.json", "load", again] and (tmp_path / "run" / "export").is_dir()
    monkeypatch.setattr(measured, "load", lambda model, run: (_ for _ in ()).throw(ValueError("for good")))
    (tmp_path / "run" / "export").rmdir()
    with pytest.raises(ValueError, match="for good"):
        run()


def test_a_run_is_trained_once_and_loaded_always(tmp_path, monkeypatch):
    run, calls = a_run(tmp_path, monkeypatch)
    run()
    run(measure=False)  # which changes no weight
    assert calls == ["adapt, with started.json", "load", "load"]
    content = json.loads((tmp_path / "run" / "trained.json").read_text())
    assert content["of"] == {"model": "tiny", "steps": 2} and content["training_seconds"] == 5.0


def test_a_run_of_other_settings_is_trained_anew_in_a_clean_folder(tmp_path, monkeypatch):
    run, calls = a_run(tmp_path, monkeypatch)
    run()
    run(steps=3)
    assert calls == ["adapt, with started.json", "load"] * 2
    assert json.loads((tmp_path / "run" / "trained.json").read_text())["of"]["steps"] == 3


def test_an_interrupted_run_is_gone_on_with_unless_the_settings_changed(tmp_path, monkeypatch):
    run, calls = a_run(tmp_path, monkeypatch)
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            run(steps=13)
    run()
    assert calls == ["adapt, with started.json", "adapt, with checkpoints, started.json", *calls[:1], "load"]
