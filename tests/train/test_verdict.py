"""Who hangs, told from marks alone, beat by beat."""

from spatial_clip_jax.train.distributed import TEMPFAIL
from spatial_clip_jax.train.verdict import DATA, ENDING, FAILED, GONE, STEP, Bench, Mark

BEATS = 100


def judged(own, *others, host: int = 0, allowed: float = 10.0, silence: float = 5.0) -> tuple[int, str, int]:
    """The beat (a second each) of the first verdict, what it says, and the status; marks are functions of the beat."""
    bench = Bench(host, silence, 1.0)
    for beat in range(BEATS):
        marks = {number: mark(beat) for number, mark in enumerate((own, *others)) if mark(beat)}
        found, status = bench.verdict(own(beat), marks, beat + 1, allowed)
        if found:
            return beat, found, status
    return BEATS, "", 0


def moving(phase: str = STEP):
    return lambda beat: Mark(beat, beat, phase, beat)


def still(phase: str, since: int = 3):
    """Lives, and does no more from a beat on."""
    return lambda beat: Mark(min(beat, since), min(beat, since), phase if beat >= since else STEP, beat)


def silent(phase: str, since: int = 3):
    return lambda beat: Mark(min(beat, since), min(beat, since), phase, min(beat, since))


def test_progress_is_no_hang():
    assert judged(moving()) == judged(moving(), moving()) == judged(moving(DATA), moving(STEP)) == (BEATS, "", 0)


def test_one_process_alone_tells_what_it_waited_for():
    told = "host 0 has finished no step for 10 s; its last was 3, it was waiting for data"
    assert judged(still(DATA)) == (13, told, TEMPFAIL)
    assert judged(still(STEP))[1].endswith("in a step")
    assert judged(still(DATA), allowed=60.0)[0] == 63


def test_the_one_without_data_is_named_not_those_who_wait_for_it():
    beat, told, _ = judged(still(STEP), still(STEP), still(DATA))
    assert beat == 13 and told == "host 2 has finished no step for 10 s; its last was 3, it was waiting for data"
    assert judged(still(STEP), still(STEP))[1].count("in a step") == 2


def test_who_is_busy_elsewhere_is_waited_for():
    for phase in ("evaluating", "saving a checkpoint", "starting", GONE):
        assert judged(still(STEP), still(phase))[0] == BEATS
        assert judged(still(phase), still(STEP))[0] == BEATS
    assert judged(still(DATA), still("evaluating"))[0] == 13, "the own stream is the own"


def test_a_silent_process_is_stopped_or_dead_whatever_it_did():
    for phase in (STEP, "evaluating", "saving a checkpoint"):
        beat, told, _ = judged(still(STEP), silent(phase), allowed=50.0)
        assert beat == 8 and told.startswith("host 1 is silent for 5 s")
        assert told.endswith(f"its last step was 3, it was {phase}")
    assert judged(moving(), silent(GONE))[0] == BEATS


def test_a_coordinator_that_does_not_answer():
    bench, mark = Bench(1, 5.0, 1.0), Mark(1, 1, "evaluating", 1)
    told = [bench.verdict(mark, {0: mark}, 7, 50.0)[0] for _ in range(7)]
    assert told[:5] == [""] * 5 and told[5].startswith("host 0, the coordinator, answers nothing for 5 s")
    assert Bench(1, 5.0, 1.0).verdict(mark, {}, 0, 50.0)[0] == ""


def test_the_verdict_and_the_failure_of_another_are_followed():
    def ending(beat: int) -> Mark:
        return Mark(1, 1, f"{ENDING}75: host 9 hangs: so it is", beat)

    assert judged(moving(), ending) == (0, "host 9 hangs: so it is", 75)
    found = judged(moving(), lambda beat: Mark(1, 1, f"{FAILED}: ValueError: no pictures", beat))
    assert found == (0, "host 1 failed: ValueError: no pictures", 1)
