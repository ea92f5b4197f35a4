"""Checkpoints as one unit."""

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatial_clip_jax.train import checkpoint
from spatial_clip_jax.train.checkpoint import Checkpoints
from spatial_clip_jax.train.retention import Best
from spatial_clip_jax.train.state import TrainState, new_state

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def state(step: int, width: int = 6) -> TrainState:
    params = {"blocks": {"0": {"kernel": jnp.full((4, width), float(step))}}, "scale": jnp.bfloat16(step)}
    fresh = new_state(params, OPTIMIZER)
    moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), fresh.opt_state)
    return TrainState(jnp.int32(step), params, moved)


def abstract(width: int = 6) -> TrainState:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state(0, width))


def save(folder: Path, steps: tuple[int, ...], keep: int = 2) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), {"position": 16 * step}, {"seed": 1, "names": ["a"]})


def test_one_unit_comes_back_whole_and_the_oldest_go(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "new", 2) as checkpoints:
        assert checkpoints.latest() is None and checkpoints.restore(abstract()) is None
    save(tmp_path, (1, 2, 3))
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest() == 3
        restored = checkpoints.restore(abstract())
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["2", "3"]
    assert restored.data_state == {"position": 48} and restored.config == {"seed": 1, "names": ["a"]}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state(3))
    for ours, theirs in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state(3)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_donating_a_state_right_after_its_save_is_safe(tmp_path: Path) -> None:
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    large = state(5, width=500_000)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(large, {}, {})
        jax.block_until_ready(overwrite(large))
        checkpoints.wait()
        restored = checkpoints.restore(abstract(width=500_000))
    assert (np.asarray(restored.state.params["blocks"]["0"]["kernel"]) == 5).all()


def test_saving_the_same_step_again_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, (4,))
    save(tmp_path, (4, 5))
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["4", "5"]


def empty(folder: Path) -> None:
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def lose_arrays(folder: Path) -> None:
    for path in (folder / "state" / "d").iterdir():
        path.unlink()


def garble(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").write_text('{"item')


def list_metadata(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").write_text("[1]")


def flatten_tree(folder: Path) -> None:
    (folder / "state" / "_METADATA").write_text('{"tree_metadata": [1]}')


def changed(name: str, value: object) -> Callable[[Path], None]:
    """Damage to one part of what is saved beside the arrays, which stays JSON."""

    def damage(folder: Path) -> None:
        path = folder / "_CHECKPOINT_METADATA"
        tree = json.loads(path.read_text())
        tree["custom_metadata"][name] = value
        path.write_text(json.dumps(tree))

    return damage


WELL_FORMED = [list_metadata, flatten_tree, changed("checksums", None), changed("checksums", {}), changed("data", None)]
WELL_FORMED += [changed("data", {"position": "48"}), changed("data", {"place": 48}), changed("config", [])]


# Orbax leaves some of its reads unawaited once one of them has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [empty, lose_arrays, garble, *WELL_FORMED])
def test_damage_falls_back_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, (1, 2, 3), keep=3)
    damage(folder / "3")
    with Checkpoints(folder, 3) as checkpoints:
        restored = checkpoints.restore(abstract())
        assert int(restored.state.step) == 2 and restored.data_state == {"position": 32}
        assert checkpoints.latest() == 2
        checkpoints.save(state(3), {}, {})
    assert any("checkpoint 3 is damaged" in record.message for record in caplog.records)
    assert (tmp_path / "damaged" / "3").is_dir()
    with Checkpoints(folder, 3) as checkpoints:
        assert int(checkpoints.restore(abstract()).state.step) == 3


@pytest.mark.parametrize("damage", [list_metadata, garble])
def test_damage_before_the_newest_is_set_aside_too(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, (1, 2), keep=3)
    damage(folder / "1")
    with Checkpoints(folder, 3) as checkpoints:
        assert int(checkpoints.restore(abstract()).state.step) == 2
        checkpoints.save(state(3), {}, {})
    assert sorted(path.name for path in folder.glob("[0-9]*")) == ["2", "3"]
    assert (tmp_path / "damaged" / "1").is_dir()


@pytest.mark.parametrize("damage", [lose_arrays, garble, list_metadata])
def test_if_all_are_damaged_one_error_says_so(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, (1, 2))
    caplog.clear()
    for step in ("1", "2"):
        damage(tmp_path / step)
    with Checkpoints(tmp_path, 2) as checkpoints:
        with pytest.raises(ValueError, match=r"None of the checkpoints \[2, 1\].*else remove them"):
            checkpoints.restore(abstract())
    gc.collect()
    assert not [record for record in caplog.records if record.name in ("absl", "asyncio") and record.levelno >= 30]
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["1", "2"]


def test_errors_of_the_program_do_not_pass_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("a mistake")

    save(tmp_path / "checkpoints", (1, 2))
    monkeypatch.setattr(checkpoint, "_unplain", broken)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints, pytest.raises(TypeError, match="a mistake"):
        checkpoints.restore(abstract())
    assert not (tmp_path / "damaged").exists()


def test_checkpoints_without_a_checksum_of_their_metadata_are_read(tmp_path: Path) -> None:
    save(tmp_path, (1,))
    path = tmp_path / "1" / "_CHECKPOINT_METADATA"
    tree = json.loads(path.read_text())
    del tree["custom_metadata"]["checksums"]["metadata"]
    path.write_text(json.dumps(tree))
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.restore(abstract()).data_state == {"position": 16}


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    width = 100_000
    noise = {"blocks": {"0": {"kernel": jax.random.normal(jax.random.key(0), (4, width))}}}
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        checkpoints.save(state(1, width), {}, {})
        checkpoints.save(TrainState(jnp.int32(2), {**state(2).params, **noise}, state(2, width).opt_state), {}, {})
    largest = max((tmp_path / "checkpoints" / "2").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4  # in the middle of the noise, which no compression guards
    largest.write_bytes(data)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert int(checkpoints.restore(abstract(width)).state.step) == 1
    assert (tmp_path / "damaged" / "2").is_dir()


def test_half_a_save_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, (1,))
    (tmp_path / "1").rename(tmp_path / "2.orbax-checkpoint-tmp")
    save(tmp_path, (1,))
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest() == 1
    assert not list(tmp_path.glob("*tmp*"))


def test_another_model_is_an_error_that_moves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    save(tmp_path, (1, 2))
    with Checkpoints(tmp_path, 2) as checkpoints:
        with pytest.raises(ValueError, match=r"None of the checkpoints \[2, 1\].*If the model changed"):
            checkpoints.restore(abstract(width=7))
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["1", "2"]
    assert "set aside" not in caplog.text


def listed(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*"))


def test_every_nth_and_the_best_stay(tmp_path: Path) -> None:
    best = Best("evaluate/average", 1)
    with Checkpoints(tmp_path, 1, every=3, best=best) as checkpoints:
        for step, score in enumerate((0.1, 0.9, 0.2, 0.9, 0.3, None, 0.5, 0.4), 1):
            checkpoints.save(state(step), {}, {})
            best.add(step, {"evaluate/average": score})
    assert listed(tmp_path) == [3, 4, 6, 8]  # of equals, the newer
    again = Best("-evaluate/average", 2)
    again.again([{"step": 3, "evaluate/average": 0.2}, {"step": 4, "evaluate/average": 0.9}, {"step": 7, "loss": 1.0}])
    with Checkpoints(tmp_path, 1, best=again) as checkpoints:
        checkpoints.save(state(9), {}, {})
    assert listed(tmp_path) == [3, 4, 9]
    with pytest.raises(ValueError, match=r"names 'evaluate/average'; the evaluation gives \['evaluate/other'\]"):
        best.add(9, {"evaluate/other": 1.0})


def test_only_the_newest_stay_without_being_told(tmp_path: Path) -> None:
    save(tmp_path, (1, 2, 3, 4), keep=1)
    assert listed(tmp_path) == [4]


def test_what_a_save_took_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    save(tmp_path, (1, 2, 3))
    told = [record.args for record in caplog.records if record.message.startswith("a checkpoint is")]
    size = sum(path.stat().st_size for path in (tmp_path / "3").rglob("*") if path.is_file())
    assert len(told) == 1 and told[0][0] == pytest.approx(size / 1e6, rel=0.2) and 0 < told[0][2] < 60


def test_the_trunk_is_remembered(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, 1, trunk="abc") as checkpoints:
        checkpoints.save(state(1), {}, {})
        checkpoints.wait()
        assert checkpoints.restore(abstract()).trunk == "abc"
