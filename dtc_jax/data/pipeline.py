"""Prepared records to batches: random access by place, in threads or worker processes, the same whoever does the work.

The sample at a place of the endless global order is a function of (seed, place) alone (`dtc_jax.data.order`). A process
asks for the places whose rows of the batch it holds; Grain prepares them ahead in threads or processes. Its position is
a step, an integer: nothing else has to be saved, and another number of processes goes on from it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from dtc_jax.config_base import ConfigError
from dtc_jax.data.cached import AUGMENTATION, array_shapes, check_fits, stored_augmentation
from dtc_jax.data.order import Augmentation, Order, draw_augmentation, evaluation_augmentation
from dtc_jax.data.records import RecordError, Sample, decode, fetch, find_data_set, open_split
from dtc_jax.data.transform import extra_arrays, make_sample
from dtc_jax.data_config import DataConfig
from dtc_jax.model_config import ModelConfig

MAX_ATTEMPTS = 64
"""Broken records in a row after which the data set itself must be unreadable."""

HostBatch = dict[str, np.ndarray]


class BrokenRecord(NamedTuple):
    """A record that cannot be used."""

    split: str
    number: int
    """Its place in the split as stored."""
    reason: str
    """One line; names the record's id where that can be read."""


class Loaded(NamedTuple):
    """One sample, and which records had to be passed over for it."""

    arrays: HostBatch
    """Empty if no readable record was found."""
    broken: tuple[BrokenRecord, ...]


class Entry(NamedTuple):
    """A sample with the record that it is from and what was drawn for it."""

    arrays: HostBatch
    """As in `Loaded`."""
    broken: tuple[BrokenRecord, ...]
    record: Mapping[str, Any]
    """Images still encoded."""
    augmentation: Augmentation


class RecordReader:
    """Random access to the training samples of a split. Can be pickled: files are opened where it is unpickled."""

    def __init__(self, data: DataConfig, model: ModelConfig, split: str | None = None) -> None:
        """
        Args:
            data: Which data set, and how a record becomes a sample.
            model: Sizes, and how the hint is stitched.
            split: None takes `data.split`.

        Raises:
            ConfigError: no data set, no such split or an empty one, or records stored smaller than the model's images.
        """
        if data.path is None:
            raise ConfigError("data.path: not given; it names the folder of a prepared data set")
        self.data, self.model, self.split = data, model, split or data.split
        self.data_set = find_data_set(data.path)
        stored = self.data_set.size
        if stored < model.image_size:
            raise ConfigError(
                f"data set {self.data_set.folder}: stored at {stored} pixels, model.image_size = {model.image_size}; "
                f"build it again at {model.image_size}"
            )
        self.count = self.data_set.splits.get(self.split, 0)
        if self.split in self.data_set.splits and not self.count:
            raise ConfigError(f"data set {self.data_set.folder}: split {self.split!r} is empty")
        # A wrong name ends here, and not in a worker.
        self._records = self._open()
        cache = check_fits(self.data_set, data, model)
        self.variants = 1 if cache is None else cache.variants.get(self.split, 1)
        self.count //= self.variants
        unwanted = set(array_shapes(model, cache.cached)) - set(array_shapes(model, data.cached)) if cache else set()
        self._left_out = {AUGMENTATION, *unwanted}
        self._of_cache = {AUGMENTATION, *array_shapes(model, cache.cached if cache else ())}
        self.order = Order(self.count, data.seed)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._records = self._open()

    def _open(self) -> Sequence[Mapping[str, Any]]:
        """Open the split and read a record, in the thread that makes the reader.

        TFDS imports much of itself when it is first used, in ways in which two threads that do so at once wait for
        each other for ever.
        """
        records = open_split(self.data_set, self.split)
        with contextlib.suppress(Exception):  # a broken record will be met again in its slot
            decode(records[0])
        return records

    def training_sample(self, place: int) -> Loaded:
        """The sample at a place of the endless order, with its `index`."""
        return Loaded(*self.training_entry(place)[:2])

    def training_entry(self, place: int) -> Entry:
        """As `training_sample`, with its record."""
        augmentation = draw_augmentation(place, self.data)
        # Of a cache, each epoch takes the next variant of its records.
        first = place // self.count % self.variants * self.count
        numbers = (first + self.order.record(place, attempt) for attempt in range(min(self.count, MAX_ATTEMPTS)))
        return self._first_readable(numbers, augmentation, place)

    def evaluation_sample(self, number: int) -> Loaded:
        """The `number`-th record as stored, without augmentation; past the last one the first comes again.

        Of a cache's training split, too, and then without the cache's arrays: they are of augmented samples.
        """
        return Loaded(*self.evaluation_entry(number)[:2])

    def evaluation_entry(self, number: int) -> Entry:
        """As `evaluation_sample`, with its record."""
        augmentation = evaluation_augmentation(number, self.data)
        numbers = ((number + attempt) % self.count for attempt in range(min(self.count, MAX_ATTEMPTS)))
        return self._first_readable(numbers, augmentation, number, as_cached=self.split != self.data.split)

    def _first_readable(
        self, numbers: Iterator[int], augmentation: Augmentation, index: int, as_cached: bool = True
    ) -> Entry:
        left_out = self._left_out if as_cached else self._of_cache
        broken: list[BrokenRecord] = []
        for number in numbers:
            try:
                sample, record = self._read(number)
            except RecordError as error:
                broken.append(BrokenRecord(self.split, number, str(error)))
                continue
            # What a cache holds belongs to what was drawn when it was made.
            if as_cached:
                augmentation = stored_augmentation(record) or augmentation
            extra = {name: array for name, array in extra_arrays(record).items() if name not in left_out}
            arrays = {**extra, **make_sample(sample, augmentation, self.model), "index": np.array(index, np.uint32)}
            return Entry(arrays, tuple(broken), record, augmentation)
        return Entry({}, tuple(broken), {}, augmentation)

    def _read(self, number: int) -> tuple[Sample, Mapping[str, Any]]:
        record = fetch(self._records, number)
        sample = decode(record)
        size = self.data_set.size
        if sample.mask.shape != (size, size):
            raise RecordError(f"record {sample.id!r}: is {sample.mask.shape}, its data set {size} pixels")
        if not sample.mask.any():
            raise RecordError(f"record {sample.id!r}: its mask is empty")
        return sample, record


class Places:
    """What Grain iterates over: the samples of some rows of every global batch, from a step on."""

    def __init__(self, reader: RecordReader, rows: Sequence[int], batch_size: int, start_step: int, steps: int) -> None:
        self._reader, self._rows, self._batch_size = reader, tuple(rows), batch_size
        self._start_step, self._steps = start_step, steps

    def __len__(self) -> int:
        return self._steps * len(self._rows)

    def __getitem__(self, position: int) -> Loaded:
        step, row = divmod(int(position), len(self._rows))
        return self._reader.training_sample((self._start_step + step) * self._batch_size + self._rows[row])


class BatchStream:
    """The rows that one process holds of every global batch, step after step from `start_step`; close it after use.

    A batch is a dict of host arrays [rows, ...] (see `dtc_jax.data`), the same whatever the number of workers and
    threads, and whichever processes hold the other rows.
    """

    def __init__(
        self,
        reader: RecordReader,
        rows: Sequence[int],
        batch_size: int,
        start_step: int,
        steps: int,
    ) -> None:
        """
        Args:
            reader: Of the split to train on.
            rows: Which rows of the global batch, in [0, batch_size).
            batch_size: Of the global batch.
            start_step: The first step.
            steps: How many there are.
        """
        self._rows = len(rows)
        data = reader.data
        workers = min(data.workers, self._rows)
        # Samples ahead of those that are taken: about one batch, however it is spread.
        threads = min(data.threads, self._rows)
        ahead = max(threads, -(-self._rows // max(workers, 1)))
        dataset = grain.MapDataset.source(Places(reader, rows, batch_size, start_step, steps)).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        )
        if workers:
            if not flags.FLAGS.is_parsed():
                # Grain hands its own flags on to the workers, and absl wants them parsed by its own main.
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, ahead // 2)),
                worker_init_fn=follow_parent,
            )
        self._iterator = iter(dataset)

    def __iter__(self) -> Iterator[tuple[HostBatch, list[BrokenRecord]]]:
        return self

    def __next__(self) -> tuple[HostBatch, list[BrokenRecord]]:
        """The next batch, and the records that were passed over in it.

        Raises:
            ConfigError: a sample for which no readable record was found, or a worker process that is gone.
        """
        try:
            loaded = [Loaded(*next(self._iterator)) for _ in range(self._rows)]
        except RuntimeError as error:
            if "Worker process" not in str(error):
                raise
            raise ConfigError(
                "data: a worker process was ended from outside, for want of memory perhaps; take fewer data.workers"
            ) from None
        broken = [BrokenRecord(*record) for sample in loaded for record in sample.broken]
        return stack(loaded), broken

    def close(self) -> None:
        """Stop threads and worker processes."""
        self._iterator.close()
        # Grain's iterators close themselves again when they are collected, for which the interpreter's end is too late.
        del self._iterator


def follow_parent(worker: int, workers: int) -> None:
    """In a worker process: end when the process that started it ends, and at no signal that is meant for that one.

    Ctrl-C and a cluster's SIGTERM reach every process; the training process then needs batches until it has made its
    last step. If it is killed, that tells its workers nothing.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="follow-parent", daemon=True).start()


def stack(loaded: Sequence[Loaded]) -> HostBatch:
    """Samples to a batch.

    Raises:
        ConfigError: a sample for which no readable record was found, or records that hold different arrays.
    """
    for sample in loaded:
        if not sample.arrays:
            reason = sample.broken[-1].reason
            raise ConfigError(f"data: {len(sample.broken)} records in a row cannot be used, the last: {reason}")
    names = loaded[0].arrays.keys()
    try:
        return {name: np.stack([sample.arrays[name] for sample in loaded]) for name in names}
    except (KeyError, ValueError) as error:
        raise ConfigError(f"data: the records' arrays do not fit into one batch ({error})") from None


def evaluation_records(data: DataConfig, model: ModelConfig, count: int) -> tuple[HostBatch, list[BrokenRecord]]:
    """The first `count` samples of the evaluation split as a batch, without augmentation, fine and box masks in turn.

    A split with fewer records starts again from its first. Also returns the records that were passed over.

    Raises:
        ConfigError: see `RecordReader`.
    """
    reader = RecordReader(data, model, data.evaluation_split)
    loaded = [reader.evaluation_sample(number) for number in range(count)]
    return stack(loaded), list(dict.fromkeys(record for sample in loaded for record in sample.broken))
