"""Which host hangs, by the marks that all of them leave."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from spatial_clip_jax.train.distributed import TEMPFAIL

# What a host does. A step and waiting for data are judged; whatever else it does takes the time it takes.
STARTING, STEP, DATA, GONE = "starting", "in a step", "waiting for data", "done"
FAILED, ENDING = "failed", "ending with "
FAILURE = 1  # the status of a program that failed


@dataclass(frozen=True)
class Mark:
    """Where a host is. moved: grows whenever it moves on; posts: whenever its thread posts, so that it lives."""

    moved: int = 0
    step: int = 0
    phase: str = STARTING
    posts: int = 0


class Bench:
    """Looks at the marks once a beat. It counts beats, not time: a process that was stopped itself has not waited."""

    def __init__(self, host: int, silence: float, beat: float) -> None:
        """silence: seconds after which a host that posts nothing is taken for stopped or dead."""
        self._host, self._silence, self._beat = host, silence, beat
        self._still: dict[Hashable, tuple[Any, int]] = {}

    def verdict(self, own: Mark, marks: Mapping[int, Mark], answers: int, allowed: float) -> tuple[str, int]:
        """Why the job must end, and the status to end it with; an empty string if it need not.

        answers: how often the store has answered. allowed: seconds that this host may be without progress.
        """
        others = {host: mark for host, mark in sorted(marks.items()) if host != self._host}
        for host, mark in others.items():
            if mark.phase.startswith(ENDING):
                status, _, told = mark.phase.removeprefix(ENDING).partition(": ")
                return told, int(status)
            if mark.phase.startswith(FAILED):
                return f"host {host} {mark.phase}", FAILURE
        return self._silent(others, answers) or self._stuck(own, others, allowed), TEMPFAIL

    def _silent(self, others: Mapping[int, Mark], answers: int) -> str:
        unanswered = self._seconds("answers", answers)
        if answers and unanswered >= self._silence:
            return f"host 0, the coordinator, answers nothing for {unanswered:.0f} s: its process is stopped or dead"
        for host, mark in others.items():
            silent = self._seconds(("posts", host), mark.posts)
            if mark.phase != GONE and silent >= self._silence and not unanswered:
                return (
                    f"host {host} is silent for {silent:.0f} s: its process is stopped or dead; its last step was "
                    f"{mark.step}, it was {mark.phase}"
                )
        return ""

    def _stuck(self, own: Mark, others: Mapping[int, Mark], allowed: float) -> str:
        elsewhere = [host for host, mark in others.items() if mark.phase not in (STEP, DATA)]
        judged = own.phase == DATA or (own.phase == STEP and not elsewhere)
        stuck = self._seconds("own", (own.moved, judged))
        if not judged or stuck < allowed:
            return ""
        late = {host: mark for host, mark in {self._host: own, **others}.items() if mark.phase == DATA}
        told = [
            f"host {host} has finished no step for {stuck:.0f} s; its last was {mark.step}, it was {mark.phase}"
            for host, mark in sorted((late or {self._host: own, **others}).items())
        ]
        return "; ".join(told)

    def _seconds(self, name: Hashable, value: Any) -> float:
        """For how long a value has been what it is."""
        before, beats = self._still.get(name, (None, 0))
        self._still[name] = (value, beats + 1 if value == before else 0)
        return self._still[name][1] * self._beat
