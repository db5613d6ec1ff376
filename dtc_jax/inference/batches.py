"""One batch on several devices: each samples its share, by the same program as one device would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from dtc_jax.inference.generate import generate
from dtc_jax.inference.settings import SamplerSettings

IMAGES_PER_ACCELERATOR = 4
"""Images at once on each GPU or TPU, where the caller does not say; a CPU gains nothing from more than one."""

_AXIS = "batch"


def choose_batch(images: int, batch_size: int | None, devices: Sequence[jax.Device]) -> tuple[int, list[jax.Device]]:
    """How many images to sample at once, and on which devices.

    What is asked for decides where there are so many images. Fewer go into the next power of two, as do the devices
    that have none: batches are filled up, and a request of one image more is not compiled for anew.

    Args:
        images: how many there are to sample.
        batch_size: images at once on all devices together; None takes `IMAGES_PER_ACCELERATOR` for each, 1 on CPUs.
        devices: this process's.

    Returns:
        A multiple of the number of devices that work, at least `batch_size` (where there are so many images); and
        those devices.
    """
    if batch_size is None:
        batch_size = len(devices) * (1 if devices[0].platform == "cpu" else IMAGES_PER_ACCELERATOR)
    wanted = max(1, min(batch_size, images))
    working = list(devices[: min(_bucket(wanted), batch_size)])
    most = -(-batch_size // len(working))
    return min(_bucket(-(-wanted // len(working))), most) * len(working), working


def _bucket(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def replicate(params: Mapping[str, Any], devices: Sequence[jax.Device]) -> Mapping[str, Any]:
    """Parameters on every device."""
    return jax.device_put(params, NamedSharding(_mesh(devices), P()))


def generate_on(
    params: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    keys: Key[Array, " b"],
    guidance_scale: Float[Array, ""],
    settings: SamplerSettings,
    devices: Sequence[jax.Device],
) -> Float[Array, "b h w 3"]:
    """`generate`, the batch shared out over devices; compiled once for every `settings`, batch shape and devices.

    Args:
        params: from `replicate`.
        batch: see `generate`; a multiple of the number of devices.
        keys: one for each image.
        guidance_scale: see `generate`.
        settings: what is compiled.
        devices: this process's; the batch's first part goes to the first.
    """
    mesh = _mesh(devices)
    shares = NamedSharding(mesh, P(_AXIS))
    return _generate_sharded(
        params, jax.device_put(dict(batch), shares), jax.device_put(keys, shares), guidance_scale, settings, mesh
    )


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


@partial(jax.jit, static_argnames=("settings", "mesh"))
def _generate_sharded(
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    keys: Key[Array, " b"],
    guidance_scale: Float[Array, ""],
    settings: SamplerSettings,
    mesh: Mesh,
) -> Float[Array, "b h w 3"]:
    # Mapped and not partitioned: nothing is exchanged, and no share is computed in another way than alone.
    return jax.shard_map(
        partial(generate, settings=settings),
        mesh=mesh,
        in_specs=(P(), P(_AXIS), P(_AXIS), P()),
        out_specs=P(_AXIS),
        check_vma=False,
    )(params, batch, keys, guidance_scale)
