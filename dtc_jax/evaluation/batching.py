"""A function of a batch of images, fed with single images and computed on all devices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dtc_jax.inference.batches import replicate

Key = tuple[str, str]
"""The result's name, and which image of it."""

_AXIS = "batch"
_IN_FLIGHT = 2
"""Batches that are handed to the devices before the results of an earlier one are fetched."""


class BatchedFunction:
    """Collects arrays until they fill a batch, and keeps what the function makes of each.

    Arrays of different shapes are batches of their own; each shape is compiled once. A batch is shared out over the
    devices, which exchange nothing, so that their number does not matter to the result.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        params: Mapping[str, Any],
        batch_size: int,
        devices: Sequence[jax.Device],
    ) -> None:
        """Prepare.

        Args:
            function: From (params, arrays [b, ...]...) to arrays [b, ...], or a dict of them; pure.
            params: On the host.
            batch_size: Rounded up to a multiple of the number of devices.
            devices: Of this process.
        """
        mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
        self._shares = NamedSharding(mesh, P(_AXIS))
        self._params = replicate(params, devices)
        self._batch_size = -(-batch_size // len(devices)) * len(devices)
        self._function = function
        self._mesh = mesh
        self._compiled: dict[int, Callable[..., Any]] = {}
        self._waiting: dict[tuple[Any, ...], list[tuple[Key, tuple[np.ndarray, ...]]]] = {}
        self._running: deque[tuple[list[Key], Any]] = deque()
        self._results: dict[Key, Any] = {}

    def add(self, key: Key, *arrays: np.ndarray) -> None:
        """One image (or several that belong together), without the batch's axis."""
        rows = self._waiting.setdefault(tuple((array.shape, array.dtype) for array in arrays), [])
        rows.append((key, arrays))
        if len(rows) == self._batch_size:
            self._run(rows)
            rows.clear()

    def finish(self) -> dict[Key, Any]:
        """Compute what is left; the results of every key."""
        for rows in self._waiting.values():
            if rows:
                self._run(rows)
        self._waiting.clear()
        while self._running:
            self._fetch()
        return self._results

    def _run(self, rows: Sequence[tuple[Key, tuple[np.ndarray, ...]]]) -> None:
        # The last batch is filled up, so that it needs no compilation of its own.
        filled = [*rows, *[rows[-1]] * (self._batch_size - len(rows))]
        columns = [np.stack(column) for column in zip(*(arrays for _, arrays in filled), strict=True)]
        if len(columns) not in self._compiled:
            shares = (P(_AXIS),) * len(columns)
            mapped = jax.shard_map(
                self._function, mesh=self._mesh, in_specs=(P(), *shares), out_specs=P(_AXIS), check_vma=False
            )
            self._compiled[len(columns)] = jax.jit(mapped)
        outputs = self._compiled[len(columns)](self._params, *jax.device_put(columns, self._shares))
        self._running.append(([key for key, _ in rows], outputs))
        if len(self._running) > _IN_FLIGHT:
            self._fetch()

    def _fetch(self) -> None:
        keys, outputs = self._running.popleft()
        arrays = jax.device_get(outputs)
        for row, key in enumerate(keys):
            self._results[key] = jax.tree.map(lambda array, row=row: array[row], arrays)
