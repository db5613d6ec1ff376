"""One mesh, one rule: batch over both axes, every large array over "fsdp" along its largest divisible axis.

`jax.jit` with in and out shardings does the rest (what pjit became); there are no annotations inside the modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dtc_jax.config import ConfigError

BATCH_SPEC = PartitionSpec(("data", "fsdp"))
"""The batch's leading axis over all devices."""


def make_mesh(fsdp_devices: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh ("data", "fsdp") over `devices`; None takes all devices of all processes.

    Raises:
        ConfigError: `fsdp_devices` does not divide the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp_devices < 1 or count % fsdp_devices:
        raise ConfigError(f"training.fsdp_devices = {fsdp_devices} must divide the number of devices, {count}")
    shape = (count // fsdp_devices, fsdp_devices)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def partition_spec(shape: tuple[int, ...], fsdp_devices: int, min_size: int) -> PartitionSpec:
    """Split the largest axis that `fsdp_devices` divides (the last of equals).

    Arrays with fewer than `min_size` elements, and those that no axis of can be divided, stay whole.
    """
    if fsdp_devices == 1 or np.prod(shape, dtype=np.int64) < min_size:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp_devices == 0]
    if not divisible:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def tree_sharding(mesh: Mesh, tree: PyTree, min_size: int) -> PyTree:
    """Shardings for a tree of arrays or shapes (parameters, EMA, optimizer state, frozen networks) by the one rule."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, partition_spec(leaf.shape, fsdp, min_size)), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
