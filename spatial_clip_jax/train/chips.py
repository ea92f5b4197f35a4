"""What accelerators can do at best, as their makers publish it; found by the name that JAX gives a device.

TPUs: Google Cloud's pages on v4, v5e, v5p, v6e and TPU7x (docs.cloud.google.com/tpu/docs/v5e and so on, read in 2026).
A chip's "bidirectional ICI bandwidth" is what it sends and what it receives together, so half of it is sent; v4's is
on the page of the system architecture (2,400 Gbit/s). Of TPU7x, JAX sees a chip as two devices, and a row is a device.
GPUs: NVIDIA's data sheets of A100, H100, H200, HGX B200, L4, L40S and A10. Peaks are dense: where a sheet's footnote
says "with sparsity", half of its number. NVLink's figure, too, is for both directions. GB are 10^9 bytes.
"""

from dataclasses import dataclass

import jax

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      name: what it is called.
      flops: peak floating-point operations a second, dense bf16 with fp32 sums.
      memory: bytes of its memory (HBM).
      bandwidth: bytes a second between it and its memory.
      links: bytes a second that it can send to other chips over ICI or NVLink, all links together; 0 if it has none.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float


CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * GIB, 1200e9, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 400e9),
    "TPU7x": Chip("half a TPU7x", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 600e9 / 2),
    "NVIDIA A100-SXM4-40GB": Chip("A100 SXM 40 GB", 312e12, 40e9, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 SXM 80 GB", 312e12, 80e9, 2039e9, 300e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 PCIe 80 GB", 312e12, 80e9, 1935e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989.5e12, 80e9, 3350e9, 450e9),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756.5e12, 80e9, 2000e9, 300e9),
    "NVIDIA H200": Chip("H200 SXM", 989.5e12, 141e9, 4800e9, 450e9),
    "NVIDIA B200": Chip("B200 SXM", 2250e12, 180e9, 8000e9, 900e9),
    "NVIDIA L4": Chip("L4", 121e12, 24e9, 300e9, 0.0),
    "NVIDIA L40S": Chip("L40S", 362e12, 48e9, 864e9, 0.0),
    "NVIDIA A10": Chip("A10", 125e12, 24e9, 600e9, 0.0),
}
ALIASES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}


def chip_of(device: jax.Device) -> Chip | None:
    """What the device can do at best; None for one that is not in the table, such as a CPU."""
    kind = device.device_kind
    return CHIPS.get(ALIASES.get(kind, kind))
