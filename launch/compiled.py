"""Steps compiled for devices that are not here, with what each costs a chip and how long it may take."""

import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from launch.fusion_shapes import fusion_traced
from launch.shapes import StageShapes, stage_shapes
from spatial_clip_jax.models.geometries import GEOMETRIES, named_spec
from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.train.chips import Chip, chip_of
from spatial_clip_jax.train.costs import GIB, Costs, costs_of
from spatial_clip_jax.train.estimate import Estimate, estimate
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.sharding import make_mesh

logger = logging.getLogger(__name__)
# libtpu asks where it is, and complains of the answer, unless it is told; and is there for one process at a time.
NOWHERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost"}
NOWHERE |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclass(frozen=True)
class Compiled:
    """A step for `chips` devices, of what kind `chip` is where it is known.

    images, side: pictures a step of all chips, and their pixels. held: bytes of the arguments by name, without a
    chip's padding. seconds: what compiling took.
    """

    title: str
    images: int
    side: int
    chips: int
    chip: Chip | None
    held: dict[str, int]
    costs: Costs
    seconds: float

    @property
    def margin(self) -> float | None:
        """Share of the chip's memory that stays free."""
        return 1 - self.costs.memory / self.chip.memory if self.chip else None

    def estimate(self, chips: int | None = None) -> Estimate | None:
        """How long a step may take; on so many chips, with the same pictures a chip, if `chips` says so."""
        if self.chip is None:
            return None
        count = chips or self.chips
        sent = self.costs.sent(count, self.chips)
        return estimate(self.costs, self.chip, round(self.images / self.chips * count), sent)

    def content(self) -> dict[str, Any]:
        """For JSON."""
        content = {"title": self.title, "images": self.images, "side": self.side, "chips": self.chips}
        content |= {"held": self.held} | self.costs.content() | {"compile_seconds": round(self.seconds, 1)}
        if self.chip and (found := self.estimate()):
            content |= {"margin": self.margin, "chip": asdict(self.chip), "estimate": found.content()}
        return content

    def text(self) -> str:
        """Some lines: pictures, memory, arithmetic, what is sent, time."""
        held = ", ".join(f"{name} {size / GIB:.3f}" for name, size in self.held.items())
        pictures = f"{self.images} pictures of {self.side} x {self.side}, {self.images / self.chips:g} a chip"
        lines = [f"{self.title}: {pictures}"]
        lines += [self.costs.text(), *([f"  of the arguments, GiB: {held}"] if held else [])]
        if self.chip and (found := self.estimate()):
            lines.append(f"  {self.margin:.0%} of {self.chip.name}'s {self.chip.memory / GIB:.0f} GiB stay free")
            lines.append(found.text())
        return "\n".join([*lines, f"  compiled in {self.seconds:.0f} s"])


def compiled_steps(
    config: ConfigDict, spec: ClipSpec, devices: Sequence[jax.Device], per_chip: int | None = None, done: int = 0
) -> Iterator[Compiled]:
    """The steps of a config's stages, one after another, without the first `done`; or its fusion. `per_chip` stands for
    the batch size.
    """
    if "pyramid" in config:
        yield compile_fusion(config, spec, devices)
        return
    if per_chip is not None:
        config = ConfigDict(config.to_dict() | {"batch_size": per_chip * len(devices)})
    for number, stage in enumerate(stage_shapes(config, spec)[done:], done + 1):
        yield compile_stage(stage, devices, f"stage {number}")


def spec_of(name: str) -> ClipSpec:
    """The geometry of this name; ValueError for one that is not known."""
    if name not in GEOMETRIES:
        raise ValueError(f"no geometry is called {name!r}; give --geometry, one of {', '.join(GEOMETRIES)}")
    return named_spec(name)


def compile_stage(stage: StageShapes, devices: Sequence[jax.Device], title: str = "step") -> Compiled:
    """A stage's step for these devices; ValueError for a mesh or a batch that does not fit them."""
    start = time.monotonic()
    step = stage.placed_step(make_mesh(read_settings(stage.config).mesh, devices))
    costs = costs_of(step.traced, len(devices))
    images, side = stage.batch["image"].shape[:2]
    seconds = time.monotonic() - start
    return Compiled(title, images, side, len(devices), chip_of(devices[0]), step.held, costs, seconds)


def compile_fusion(config: ConfigDict, spec: ClipSpec, devices: Sequence[jax.Device]) -> Compiled:
    """The fusion of a bench config for these devices."""
    start = time.monotonic()
    costs = costs_of(fusion_traced(config, spec, make_mesh({"data": -1}, devices)), len(devices))
    images, seconds = config.chip.pictures * len(devices), time.monotonic() - start
    return Compiled("fusion", images, config.side, len(devices), chip_of(devices[0]), {}, costs, seconds)


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The chips of a topology; ValueError if libtpu is missing, or knows none of that name."""
    for name, value in NOWHERE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if not topology:
        raise ValueError("--topology is empty; it is like v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("there is no libtpu: `pip install libtpu`, in an environment of its own")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--topology={topology}: {reason}; it is like v5e:4x4") from error
