"""How long a step would take at the published peaks of a chip: a bound, and a guess whose assumption is said."""

from dataclasses import asdict, dataclass
from typing import Any

from spatial_clip_jax.train.chips import Chip
from spatial_clip_jax.train.costs import Costs

# The guess: compute and memory reach half of their peaks, and nothing is computed while something is sent. Published
# training on TPUs reaches .44 to .71 of the peak (MaxText's tables, github.com/AI-Hypercomputer/maxtext).
ASSUMED = 0.5


@dataclass(frozen=True)
class Estimate:
    """Seconds a step at the peaks, of `compute`, `memory` traffic and sending over the `links`; and pictures a step."""

    compute: float
    memory: float
    links: float
    images: int

    @property
    def bound(self) -> float:
        """Seconds a step takes at least: everything at its peak, and all of it at the same time (the roofline)."""
        return max(self.compute, self.memory, self.links)

    @property
    def guess(self) -> float:
        """Seconds a step takes if `ASSUMED` holds."""
        return max(self.compute, self.memory) / ASSUMED + self.links

    def utilisation(self, seconds: float) -> float:
        """Share of the chip's peak arithmetic that a step of so many seconds uses."""
        return self.compute / seconds

    def content(self) -> dict[str, Any]:
        """For JSON: seconds, pictures a second of all chips, utilisation, by assumption."""
        both = {"bound": self.bound, f"assuming_{ASSUMED:g}_of_the_peaks": self.guess}
        return asdict(self) | {
            name: {"seconds": t, "images_per_second": self.images / t, "utilisation": self.utilisation(t)}
            for name, t in both.items()
        }

    def text(self) -> str:
        """Two lines."""
        return (
            f"  at the published peaks: compute {self.compute * 1e3:.3g} ms, memory {self.memory * 1e3:.3g} ms, "
            f"links {self.links * 1e3:.3g} ms; a step takes {self.bound * 1e3:.3g} ms at least, "
            f"{self.images / self.bound:.4g} images/s at most, utilisation {self.utilisation(self.bound):.0%} at most\n"
            f"  assuming {ASSUMED:.0%} of the peaks and sending apart: {self.guess * 1e3:.3g} ms, "
            f"{self.images / self.guess:.4g} images/s, utilisation {self.utilisation(self.guess):.0%}"
        )


def estimate(costs: Costs, chip: Chip, images: int, sent: float | None = None) -> Estimate:
    """Of a step with `images` pictures on all chips; `sent`: bytes that a chip sends, where they are not the costs'."""
    links = costs.sent() if sent is None else sent
    return Estimate(
        compute=costs.flops / chip.flops,
        memory=costs.traffic / chip.bandwidth,
        links=links / chip.links if chip.links else 0.0,
        images=images,
    )
