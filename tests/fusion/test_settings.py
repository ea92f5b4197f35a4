"""Fusion settings that no tower can be fused by are refused where they are made."""

import jaxtyping
import pytest

from spatial_clip_jax.fusion.settings import FusionSettings

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("windows", ((), ((0.5, 0),), ((-1, 0.5),), ((0.5,),), (0.5, 0.25), ((0.5, NAN),), [(0.5, 0.25)], None, "ab")),
        ("temperature", (0, -0.1, NAN, INFINITE, "0.2", None, True)),
        ("sigma", (0, NAN)),
        ("mix", (-0.1, NAN, "half")),
        ("segments", ((1,), (0, 4), (4.0,), (True,), [4], 4, None)),
        ("segment_mix", (-0.1, NAN, INFINITE, "half", None)),
        ("chunk", (0, -1, 1.5, True)),
        ("rule", (None, ["affinity"])),
        ("readout", (None, ["plain"])),
    ],
)
def test_impossible_settings_are_refused(monkeypatch, field: str, values: tuple):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, who have no run-time checker
    for value in values:
        with pytest.raises(ValueError, match=f"{field}.* must be"):
            FusionSettings(**{field: value})


def test_windows_belong_to_the_rules_that_look_through_them():
    with pytest.raises(ValueError, match=r"rule 'none' has no windows: give \(\), got \(\(0.5, 0.5\)"):
        FusionSettings(rule="none")
    with pytest.raises(ValueError, match="windows must be a tuple of pairs"):
        FusionSettings(rule="affinity", windows=(), segments=(4,))
    assert FusionSettings(rule="none", windows=(), segments=(2, 8)).segments == (2, 8)


def test_whole_numbers_will_do():
    assert FusionSettings(windows=((1, 1),), temperature=1, mix=0, sigma=1, chunk=4).windows == ((1, 1),)
