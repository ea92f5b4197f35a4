"""Claims against numbers worked out by hand, and that nothing is claimed of what is not measured."""

import dataclasses

import pytest

from spatial_clip_jax.evaluate.claims import LOCALIZATION, Claim, Claims, Found, compare
from spatial_clip_jax.evaluate.comparison import Rows


def row(average: float, /, *values: float, **changes: list[float]) -> dict[str, list[float]]:
    """All columns alike, a value a run, but for the average, which is given, and the changes."""
    return {column: list(values) for column in (*LOCALIZATION, "ratio")} | {
        "average": [average] * len(values),
        **changes,
    }


ROWS: Rows = {
    "plain": row(0.1, 0.1, zero_shot_top1=[0.95]),
    "maskclip": row(0.6, 0.4),
    "naclip": row(0.5, 0.5),
    "windows": row(0.71, 0.9),
    "sliding": row(0.7, 0.9),
    "clipself": row(0.6, 0.5, 0.6, 0.7),
    "ours": row(0.71, 0.55, 0.6, 0.6, average=[0.68, 0.7, 0.75], ratio=[1.0, 1.2, 1.4], zero_shot_top1=[0.95] * 3),
}
OURS = Claims(
    "ours",
    ("maskclip", "naclip"),
    ("clipself",),
    ("windows", "sliding"),
    (("miou", "clipself", "naclip"), ("miou", "maskclip", "naclip")),
    read_out_points=10.0,
    recipe_points=12.0,
)
KEPT = {"plain": [0.6, 0.7, 0.8], "maskclip": [0.5, 0.6, 0.9]}
FOUND = Found(ROWS, 3, ["ratio"], KEPT)


def about(*words: str, found: Found = FOUND, claims: Claims = OURS) -> Claim:
    """The one claim that says all this."""
    (claim,) = [claim for claim in compare(found, claims) if all(word in claim.text for word in words)]
    return claim


def with_rows(**rows: dict[str, list[float]]) -> Found:
    return dataclasses.replace(FOUND, rows=ROWS | rows)


def without(name: str) -> Found:
    return dataclasses.replace(FOUND, rows={row: values for row, values in ROWS.items() if row != name})


def test_points_above_the_best_of_each_kind():
    read_out, recipe = about("read-out"), about("published recipe")
    assert read_out.value == recipe.value == pytest.approx(11.0) and (read_out.holds, recipe.holds) == (True, False)
    assert "(maskclip)" in read_out.text and read_out.line().endswith("11.00 (holds)")
    assert "at least 12" in recipe.text and recipe.line().endswith("(DOES NOT HOLD)")


def test_the_better_teacher_counts_and_no_lead_is_no_claim_however_low_the_bar():
    claim = about("teacher")
    assert claim.value == pytest.approx(0.0) and claim.holds is False and "(windows)" in claim.text
    assert about("teacher", claims=dataclasses.replace(OURS, teachers=("sliding",))).value == pytest.approx(1.0)
    assert about("teacher", claims=dataclasses.replace(OURS, teachers=("sliding",))).holds


def test_the_lead_in_every_column_is_at_most_the_best_rows_spread_below():
    """clipself is at 0.6 ± 0.1, ours at 0.583: within. The teachers, at 0.9, take many passes."""
    for column in LOCALIZATION:
        claim = about("one-pass row", f"in {column},")
        assert claim.value == pytest.approx(-100 / 60) and claim.holds and "(clipself)" in claim.text
    narrow = with_rows(clipself=row(0.6, 0.5, 0.6, 0.7, miou=[0.59, 0.6, 0.61], pointing=[0.57, 0.58, 0.59]))
    assert about("one-pass row", "in miou,", found=narrow).holds is False
    assert about("one-pass row", "in pointing,", found=narrow).holds
    assert about("one-pass row", "in miou,", found=with_rows(naclip=row(0.5, 0.61))).holds is False


def test_published_orderings():
    assert about("clipself above naclip").value == pytest.approx(10.0) and about("clipself above naclip").holds
    assert about("maskclip above naclip").value == pytest.approx(-10.0) and not about("maskclip above naclip").holds
    as_good = with_rows(maskclip=row(0.6, 0.5))
    assert about("maskclip above naclip", found=as_good).holds is False
    with pytest.raises(ValueError, match="orderings must hold"):
        Claims("ours", orderings=(("miou", "clipself"),))


def test_one_seed_that_changes_classification_is_enough():
    assert about("zero_shot").holds and about("zero_shot").value == 0
    claim = about("zero_shot", found=with_rows(ours={**ROWS["ours"], "zero_shot_top1": [0.95, 0.949, 0.95]}))
    assert claim.value == pytest.approx(-0.1) and claim.holds is False


def test_the_time_of_one_pass():
    assert about("ratio").value == pytest.approx(1.2) and about("ratio").holds is False
    assert about("ratio", claims=dataclasses.replace(OURS, ratio=1.2 + 1e-9)).holds


def test_the_share_of_the_gain_that_is_kept():
    plain, maskclip = about("keeps", "plain"), about("keeps", "maskclip")
    assert plain.value == pytest.approx(0.7) and maskclip.value == pytest.approx(2 / 3)
    assert (about("keeps", "plain", claims=dataclasses.replace(OURS, kept=0.69)).holds, maskclip.holds) == (True, False)
    partial = about("keeps", "plain", found=dataclasses.replace(FOUND, kept={**KEPT, "plain": [0.9]}))
    assert partial.holds is None and "2 of 3 runs" in partial.text
    assert "the second world" in about("keeps", found=dataclasses.replace(FOUND, kept={})).text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("naclip", ["read-out"]),
        ("clipself", ["published recipe"]),
        ("sliding", ["teacher"]),
        ("maskclip", ["read-out"]),
    ],
)
def test_nothing_is_claimed_while_a_row_compared_with_is_missing(name, words):
    claim = about(*words, found=without(name))
    assert (claim.value, claim.holds) == (None, None) and f"missing: {name} (0 of " in claim.text
    assert claim.line().endswith("- (not measured)")
    assert about(*words).holds is not None


def test_nothing_is_claimed_while_a_seed_is_missing():
    started = {column: values[:2] for column, values in ROWS["clipself"].items()}
    for words in (["published recipe"], ["one-pass row", "in miou,"], ["clipself above naclip"]):
        claim = about(*words, found=with_rows(clipself=started))
        assert claim.holds is None and "missing: clipself (2 of 3 runs)" in claim.text
    assert about("read-out", found=with_rows(clipself=started)).holds  # which does not compare with it
    ours = with_rows(ours={column: values[:1] for column, values in ROWS["ours"].items()})
    unknown = [claim for claim in compare(ours, OURS) if claim.holds is None]
    assert all("ours (1 of 3 runs)" in claim.text for claim in unknown)
    assert len(unknown) == 3 + len(LOCALIZATION) + 1 + 1


def test_a_column_that_was_not_measured_is_missing():
    values = {column: found for column, found in ROWS["maskclip"].items() if column != "relation_accuracy"}
    claim = about("one-pass row", "in relation_accuracy,", found=with_rows(maskclip=values))
    assert claim.holds is None and "maskclip (0 of 1 runs)" in claim.text
    assert all(claim.holds is None for claim in compare(Found({}, 3, ["ratio"]), OURS))


def test_a_recipe_is_not_compared_with_itself():
    claims = dataclasses.replace(OURS, recipes=("ours", "clipself"))
    assert about("published recipe", claims=claims).value == pytest.approx(11.0)
