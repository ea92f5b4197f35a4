"""A list of jobs, each of which can be done before: what is being done, what is left, and what failed."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """`work` returns whether there was anything to do; jobs of one `kind` take about as long as each other."""

    kind: str
    title: str
    work: Callable[[], bool]


def work_through(jobs: Sequence[Job], failed: dict[str, str], after: Callable[[], object]) -> None:
    """Does all jobs, and goes on after one that diverges or does not fit: `failed` gains {title: why} of those.

    `after` is called after every job that had something to do.
    """
    seconds: dict[str, list[float]] = {}
    for i, job in enumerate(jobs):
        logger.info("[%d of %d] %s%s", i + 1, len(jobs), job.title, _left(jobs[i:], seconds))
        start = time.monotonic()
        try:
            worked = job.work()
        except (FloatingPointError, ValueError, jax.errors.JaxRuntimeError) as error:  # the last: out of memory
            logger.error("%s failed: %s", job.title, error)
            failed[job.title] = str(error)
            continue
        if worked:
            seconds.setdefault(job.kind, []).append(time.monotonic() - start)
            after()
        else:
            logger.info("%s: done before", job.title)


def _left(jobs: Sequence[Job], seconds: dict[str, list[float]]) -> str:
    """An estimate from the jobs of the same kind so far; nothing before there is one of each kind."""
    if not jobs or any(job.kind not in seconds for job in jobs):
        return ""
    minutes = sum(statistics.median(seconds[job.kind]) for job in jobs) / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
