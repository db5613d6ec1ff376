"""Batches of a prepared data set on the mesh, ready before the step asks for them."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.order import MAX_PLACES
from dtc_jax.data.pipeline import BatchStream, HostBatch, RecordReader
from dtc_jax.training.broken_records import BrokenShare, OnBroken
from dtc_jax.training.sharding import batch_sharding


def local_rows(sharding: Sharding, batch_size: int) -> tuple[int, ...]:
    """The rows of the global batch that this process's devices hold, ascending: not always neighbours, nor in the order
    of the processes."""
    spans = sharding.addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for span in spans if span for row in range(*span[0].indices(batch_size))}))


def put_rows(batch: HostBatch, rows: Sequence[int], batch_size: int, sharding: Sharding) -> PyTree:
    """A process's rows as its part of the global batch.

    Args:
        batch: Arrays [rows, ...].
        rows: Which rows of the global batch they are, ascending.
        batch_size: Of the global batch.
        sharding: Of its leading axis.
    """
    place = {row: number for number, row in enumerate(rows)}

    def put(values: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return values[place[start] : place[start] + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, part)

    return {name: put(values) for name, values in batch.items()}


class RecordSource:
    """A `BatchSource` over prepared records: a thread reads, prepares and puts batches on the devices, some ahead."""

    def __init__(self, config: ExperimentConfig, mesh: Mesh, on_broken: OnBroken) -> None:
        """
        Args:
            config: The experiment.
            mesh: What the batch is sharded over.
            on_broken: Told of each record that cannot be used, once, from a thread.

        Raises:
            ConfigError: no such data set or split, or a run that draws more samples than places can be counted.
        """
        batch_size, steps = config.training.batch_size, config.training.steps
        if steps * batch_size > MAX_PLACES:
            raise ConfigError(
                f"training.steps = {steps} times training.batch_size = {batch_size} is more than the 2**32 samples "
                f"that can be counted; take at most {MAX_PLACES // batch_size} steps"
            )
        self._reader = RecordReader(config.data, config.model)
        splits = self._reader.data_set.splits
        evaluated = config.training.sample_every or config.training.evaluate_every
        if evaluated and not splits.get(config.data.evaluation_split):
            # Now, and not when the first grid is drawn.
            held = ", ".join(sorted(splits))
            raise ConfigError(
                f"data.evaluation_split = {config.data.evaluation_split}: no records in "
                f"{self._reader.data_set.folder}, which has {held}; name one of these (samples are "
                "drawn from it), or set training.sample_every and training.evaluate_every to 0"
            )
        self._batch_size, self._prefetch = batch_size, config.data.prefetch
        self._sharding = batch_sharding(mesh)
        self._rows = local_rows(self._sharding, batch_size)
        # What this process sees of an epoch.
        least = math.ceil(self._reader.count * len(self._rows) / batch_size)
        self._share = BrokenShare(config.data.max_broken, least, on_broken)
        self._running: _Prefetch | None = None

    def __call__(self, step: int) -> PyTree:
        """The batch of a step. The one after the last costs no wait; any other starts again from there.

        Raises:
            ConfigError: too many broken records.
        """
        if self._running is None or self._running.next_step != step:
            self.close()
            left = MAX_PLACES // self._batch_size - step
            stream = BatchStream(self._reader, self._rows, self._batch_size, step, left)
            self._running = _Prefetch(self, stream, step)
        return self._running.take()

    def close(self) -> None:
        """Stop the thread, and workers where there are any."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def load(self, stream: BatchStream) -> PyTree:
        """The stream's next batch, counted and on the devices."""
        batch, broken = next(stream)
        self._share.count(broken, len(self._rows))
        return put_rows(batch, self._rows, self._batch_size, self._sharding)

    @property
    def prefetch(self) -> int:
        """Batches that are ahead of the last one taken."""
        return self._prefetch


class _Prefetch:
    """A thread that stays some batches ahead of who takes them."""

    def __init__(self, source: RecordSource, stream: BatchStream, step: int) -> None:
        self.next_step = step
        self._source, self._stream = source, stream
        self._ready: queue.SimpleQueue[PyTree | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(source.prefetch)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._ready.put(self._source.load(self._stream))
        except BaseException as error:  # whatever it is, it belongs to who waits for the batch
            self._ready.put(error)

    def take(self) -> PyTree:
        batch = self._ready.get()
        if isinstance(batch, BaseException):
            # Asked again, the same: the thread has ended.
            self._ready.put(batch)
            raise batch
        self.next_step += 1
        self._room.release()
        return batch

    def close(self) -> None:
        self._stopped.set()
        self._room.release()
        self._thread.join()
        self._stream.close()
