"""One mesh, one rule: batch over both axes, every large array over "fsdp" along its largest divisible axis.

`jax.jit` with in and out shardings does the rest (what pjit became); there are no annotations inside the modules.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dtc_jax.config import ConfigError

MIN_SHARDED_SIZE = 2**16
"""Arrays with fewer elements are kept whole on every device: gathering them costs more than they weigh."""

BATCH_SPEC = PartitionSpec(("data", "fsdp"))
"""The batch's leading axis over all devices."""


def make_mesh(fsdp_devices: int) -> Mesh:
    """Mesh ("data", "fsdp") over all devices of all processes.

    Raises:
        ConfigError: `fsdp_devices` does not divide the number of devices.
    """
    count = jax.device_count()
    if fsdp_devices < 1 or count % fsdp_devices:
        raise ConfigError(f"training.fsdp_devices = {fsdp_devices} must divide the number of devices, {count}")
    return jax.make_mesh((count // fsdp_devices, fsdp_devices), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def partition_spec(shape: tuple[int, ...], fsdp_devices: int) -> PartitionSpec:
    """Split the largest axis that `fsdp_devices` divides (the last of equals); small arrays stay whole."""
    if fsdp_devices == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp_devices == 0]
    if not divisible:
        return PartitionSpec()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def tree_sharding(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shardings for a tree of arrays or shapes (parameters, EMA, optimizer state, frozen networks) by the one rule."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, partition_spec(leaf.shape, fsdp)), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
