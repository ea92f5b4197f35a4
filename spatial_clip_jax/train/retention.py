"""Which checkpoints are kept: the newest, every n-th, and the best by a metric of the periodic evaluation."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orbax.checkpoint import v1 as ocp

logger = logging.getLogger(__name__)
policies = ocp.training.preservation_policies


class Best:
    """Keeps the `count` checkpoints with the largest score, by an evaluation that follows the save.

    Orbax's own BestN wants the score when a checkpoint is saved; here the save runs while its step is evaluated.
    """

    def __init__(self, metric: str, count: int) -> None:
        """metric: a name as in metrics.jsonl, such as "evaluate/average"; with "-" before it smaller is better."""
        self._metric, self._sign = metric.removeprefix("-"), -1 if metric.startswith("-") else 1
        self._count = count
        self._scores: dict[int, float] = {}

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Takes an evaluation's numbers; ValueError if the metric is not among them."""
        if self._metric not in row:
            named = sorted(name for name in row if name not in ("step", "time"))
            raise ValueError(f"config.checkpoint.best names {self._metric!r}; the evaluation gives {named}")
        self.again([{**row, "step": step}])
        if self.steps()[:1] == [step]:
            logger.info("best so far: step %d, %s %g", step, self._metric, row[self._metric])

    def again(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes lines of metrics.jsonl, evaluations among them, as a run that goes on finds them."""
        for row in rows:
            value = row.get(self._metric)
            if value is not None and math.isfinite(value):
                self._scores[row["step"]] = self._sign * value

    def steps(self) -> list[int]:
        """The steps that were evaluated, best first; of equals the newest."""
        return sorted(self._scores, key=lambda step: (self._scores[step], step), reverse=True)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's protocol of a preservation policy."""
        there = {found.step for found in checkpoints}
        best = set([step for step in self.steps() if step in there][: self._count])
        return [found.step in best for found in checkpoints]


def policy(keep: int, every: int = 0, best: Best | None = None) -> Any:
    """Keeps what any of these would: the newest `keep`, those of every `every`-th step, the best."""
    asked: list[Any] = [policies.LatestN(keep)]
    asked += [policies.EveryNSteps(every)] if every else []
    return policies.AnyPreservationPolicy([*asked, best] if best else asked)
