"""Accelerators: how fast their matrix units are and how much memory a program can have.

Peaks are for bfloat16 with dense operands; NVIDIA's data sheets print twice that, with sparsity. A TPU's memory is what
the compiler of libtpu 0.0.42 leaves a program, a little below the capacity that Google prints (v5e: 15.75 of 16 GiB).
A GPU's is the printed decimal gigabytes, which leaves about the 7 % that driver and CUDA context take.

Sources:
    TPU: https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p and .../v6e.
    A100: https://www.nvidia.com/en-us/data-center/a100/ (312 TFLOPS; 40 or 80 GB).
    H100, H200: https://www.nvidia.com/en-us/data-center/h100/ and .../h200/ (printed with sparsity: SXM 1,979, PCIe
        1,513, NVL 1,671).
    B200: https://www.nvidia.com/en-us/data-center/dgx-b200/ (eight: 36 PFLOPS with sparsity, 1,440 GB).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class Accelerator:
    """One device, as JAX counts them.

    Attributes:
        name: Short name, lower case, as `--accelerator` takes it.
        peak_flops: Floating-point operations per second, bfloat16, dense.
        memory_bytes: What a program can have.
        device_kinds: What JAX calls it (`jax.Device.device_kind`).
    """

    name: str
    peak_flops: float
    memory_bytes: int
    device_kinds: tuple[str, ...]


# TPU v4's two cores are one device (megacore), as on the real machine.
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("v4", 275e12, int(30.75 * GIB), ("TPU v4",)),
    Accelerator("v5e", 197e12, int(15.75 * GIB), ("TPU v5 lite", "TPU v5e")),
    Accelerator("v5p", 459e12, int(95.74 * GIB), ("TPU v5", "TPU v5p")),
    Accelerator("v6e", 918e12, int(31.25 * GIB), ("TPU v6 lite", "TPU v6e")),
    Accelerator("a100-40g", 312e12, 40 * GB, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")),
    Accelerator("a100-80g", 312e12, 80 * GB, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")),
    Accelerator("h100", 989e12, 80 * GB, ("NVIDIA H100 80GB HBM3",)),
    Accelerator("h100-pcie", 756e12, 80 * GB, ("NVIDIA H100 PCIe",)),
    Accelerator("h100-nvl", 835e12, 94 * GB, ("NVIDIA H100 NVL",)),
    Accelerator("h200", 989e12, 141 * GB, ("NVIDIA H200",)),
    Accelerator("b200", 2250e12, 180 * GB, ("NVIDIA B200",)),
)
"""What is known."""


def accelerator(device_kind: str) -> Accelerator | None:
    """The accelerator that JAX calls `device_kind`; None if it is not in the table (CPUs, other GPUs)."""
    for entry in ACCELERATORS:
        if device_kind in entry.device_kinds:
            return entry
    return None


def accelerator_named(name: str) -> Accelerator | None:
    """The accelerator with a short name such as `a100-40g`; None if it is not in the table."""
    for entry in ACCELERATORS:
        if entry.name == name:
            return entry
    return None
