"""What both sides of `bench sample` are given: the same weights and inputs, made up from a seed in every process.

Nothing is written to disk, and nothing is zero, so that the results of both sides can be compared.
"""

from __future__ import annotations

import resource
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dtc_jax.config import ModelConfig
from dtc_jax.inference.runtime import release_freed_memory

BLOCK = 2**22
"""Random numbers that are drawn; large tensors repeat them."""


def made_up_params(shapes: Mapping[str, Any], network: str) -> dict[str, Any]:
    """Values of the sizes that trained networks have, float32 on the host; kernels have their fan-in's variance."""
    numbers = np.random.default_rng(zlib.crc32(network.encode())).standard_normal(BLOCK, np.float32)

    def values(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = np.resize(np.roll(numbers, zlib.crc32(jax.tree_util.keystr(path).encode()) % BLOCK), leaf.shape)
        if path[-1].key == "kernel":
            return noise * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
        return np.float32(1) + np.float32(0.1) * noise if path[-1].key == "scale" else np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(values, shapes)


def made_up_cases(model: ModelConfig, cases: int) -> dict[str, np.ndarray]:
    """A batch for `generate`: noise for pictures, and a square mask in the middle."""
    random = np.random.default_rng(0)
    side, reference = model.image_size, model.reference_size
    sizes = {"scene": side, "hint": side, "reference": reference}
    batch = {name: random.integers(0, 256, (cases, size, size, 3), np.uint8) for name, size in sizes.items()}
    batch["mask"] = np.zeros((cases, side, side, 1), np.uint8)
    batch["mask"][:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return batch


def forget_peak_memory() -> None:
    """Start the count of `peak_memory` anew, without what is freed already, where the system can (Linux)."""
    release_freed_memory()
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def peak_memory() -> int:
    """Most bytes of main memory that this process had, since `forget_peak_memory` where the system can count so."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
