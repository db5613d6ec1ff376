"""One mesh, one rule: batch over both axes, every large array over "fsdp" along its largest divisible axis.

`jax.jit` with in and out shardings does the rest (what pjit became); there are no annotations inside the modules.

A *slice* is a group of devices with a fast network among them: the chips of a TPU slice (ICI), the GPUs of a node
(NVLink). Between slices runs the data centre's network (DCN). The axis "fsdp", over which parameters are gathered in
every step, stays within a slice; over "data" only gradients are summed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from dtc_jax.config import ConfigError
from dtc_jax.training_config import ShardingOverrides, TrainingConfig

logger = logging.getLogger("dtc_jax.train")

AXES = ("data", "fsdp")
BATCH_SPEC = PartitionSpec(AXES)
"""The batch's leading axis over all devices."""


# --------------------------------------------------------------------------------------------------------------- mesh


def make_mesh(fsdp_devices: int, devices: Sequence[jax.Device] | None = None, slices: int = 0) -> Mesh:
    """Mesh ("data", "fsdp"), slice after slice along "data".

    Args:
        fsdp_devices: Devices that share each copy of the parameters; 0 for all of a slice.
        devices: Where to train; None takes all devices of all processes.
        slices: How many slices there are; 0 asks the devices. A number of one's own divides them in the order of
            processes: for networks that the devices do not tell of.

    Raises:
        ConfigError: the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else list(devices)
    groups = device_slices(devices, slices)
    per_slice, count = len(groups[0]), len(devices)
    fsdp = per_slice if fsdp_devices == 0 else fsdp_devices
    if fsdp < 0 or count % fsdp:
        raise ConfigError(f"training.fsdp_devices = {fsdp} must divide the number of devices, {count}")
    if per_slice % fsdp == 0:
        # What mesh_utils.create_hybrid_device_mesh makes, for groups of any kind.
        blocks = [_device_mesh((per_slice // fsdp, fsdp), group) for group in groups]
        arranged = np.concatenate(blocks, axis=0)
    elif fsdp % per_slice == 0:
        logger.warning(
            "training.fsdp_devices = %d spans %d slices of %d devices: every step gathers the parameters over the "
            "network between them",
            fsdp,
            fsdp // per_slice,
            per_slice,
        )
        blocks = [_device_mesh((1, per_slice), group) for group in groups]
        arranged = np.concatenate(blocks, axis=1).reshape(count // fsdp, fsdp)
    else:
        raise ConfigError(
            f"training.fsdp_devices = {fsdp} must divide the {per_slice} devices of a slice (or node), "
            f"of which there are {len(groups)}, or be a multiple of it"
        )
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 2)


def device_slices(devices: Sequence[jax.Device], slices: int = 0) -> list[list[jax.Device]]:
    """Devices by slice: what they tell (`slice_index`: a TPU slice, or a GPU node), or `slices` equal parts.

    Raises:
        ConfigError: the parts are not equal.
    """
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    if slices:
        if len(ordered) % slices:
            raise ConfigError(f"training.slices = {slices} must divide the number of devices, {len(ordered)}")
        size = len(ordered) // slices
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]
    groups: dict[int, list[jax.Device]] = {}
    # CPUs outside a cluster have no such attribute.
    for device in ordered:
        groups.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    sizes = {len(group) for group in groups.values()}
    if len(sizes) > 1:
        raise ConfigError(
            f"slices (or nodes) of different sizes, {', '.join(map(str, sorted(sizes)))} devices: use equal ones, or "
            "training.slices = 1 to take them as one"
        )
    return [groups[index] for index in sorted(groups)]


def _device_mesh(shape: tuple[int, int], devices: Sequence[jax.Device]) -> np.ndarray:
    # Several slices that are taken as one have no torus of their own.
    if len({getattr(device, "slice_index", None) for device in devices}) > 1:
        return np.asarray(devices).reshape(shape)
    # Rings that fit the chips' torus where one can be had; a part of an axis of the torus otherwise.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def check_batch(training: TrainingConfig, mesh: Mesh) -> None:
    """Refuse a batch that the devices cannot share.

    Args:
        training: Has the global batch, and in how many parts it is computed.
        mesh: Every device takes the same number of samples at a time.

    Raises:
        ConfigError: what the batch must be a multiple of.
    """
    accumulation_steps = training.accumulation_steps
    parts = mesh.size * accumulation_steps
    if training.batch_size % parts:
        steps = f" times training.accumulation_steps, {accumulation_steps}" if accumulation_steps > 1 else ""
        near = max(1, round(training.batch_size / parts)) * parts
        raise ConfigError(
            f"training.batch_size = {training.batch_size} must be a multiple of the number of devices, "
            f"{mesh.size}{steps}: for instance {near}"
        )


# ----------------------------------------------------------------------------------------------------------- the rule


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
    return _split(shape, chosen)


def _split(shape: tuple[int, ...], chosen: int) -> PartitionSpec:
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def overridden_spec(path: str, shape: tuple[int, ...], fsdp_devices: int, rule: str) -> PartitionSpec:
    """What an override asks for: `whole`, `largest` (without a smallest size) or `axis=N` (from the end if negative).

    Raises:
        ConfigError: the array has no such axis, or `fsdp_devices` does not divide it.
    """
    if rule == "whole" or fsdp_devices == 1 or not shape:
        return PartitionSpec()
    if rule == "largest":
        return partition_spec(shape, fsdp_devices, 0)
    axis = int(rule.removeprefix("axis="))
    if not -len(shape) <= axis < len(shape) or shape[axis] % fsdp_devices:
        raise ConfigError(
            f"training.sharding_overrides: {rule} of {path} {shape} cannot be split over {fsdp_devices} devices"
        )
    return _split(shape, axis % len(shape))


def tree_sharding(mesh: Mesh, tree: PyTree, min_size: int, overrides: ShardingOverrides = ()) -> PyTree:
    """Shardings for a tree of arrays or shapes (parameters, EMA, optimizer state, frozen networks) by the one rule.

    Args:
        mesh: The mesh.
        tree: Anything with a `shape` at its leaves.
        min_size: Arrays with fewer elements stay whole.
        overrides: (regular expression, rule): the first whose expression is found in a parameter's path decides, for
            the parameter, its average and its moments alike.

    Raises:
        ConfigError: an override that cannot be.
    """
    fsdp = mesh.shape["fsdp"]

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path, shape = parameter_path(key_path), tuple(leaf.shape)
        for pattern, rule in overrides:
            if re.search(pattern, path):
                return NamedSharding(mesh, overridden_spec(path, shape, fsdp, rule))
        return NamedSharding(mesh, partition_spec(shape, fsdp, min_size))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def parameter_path(key_path: tuple[Any, ...]) -> str:
    """The parameter's path (`unet/conv_in/kernel`) of a leaf of a state: its last keys of dicts.

    Fields and positions before them say only what is kept of it (`params`, `ema`, a moment).
    """
    names: list[str] = []
    for entry in reversed(key_path):
        if not isinstance(entry, jax.tree_util.DictKey):
            break
        names.insert(0, str(entry.key))
    return "/".join(names)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


# ------------------------------------------------------------------------------------------------------------- memory


def bytes_per_device(tree: PyTree, shardings: PyTree | None = None) -> int:
    """Bytes that one device holds of a tree.

    Args:
        tree: Arrays, or shapes with a type (`jax.ShapeDtypeStruct`).
        shardings: Tree of shardings of the same form; None takes the leaves' own.
    """
    leaves = jax.tree.leaves(tree)
    placed = [leaf.sharding for leaf in leaves] if shardings is None else jax.tree.leaves(shardings)
    total = 0
    for leaf, sharding in zip(leaves, placed, strict=True):
        shape = leaf.shape if sharding is None else sharding.shard_shape(tuple(leaf.shape))
        total += int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
    return total


def readable_bytes(count: int) -> str:
    """`1.23 GB` and the like, in powers of a thousand."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
