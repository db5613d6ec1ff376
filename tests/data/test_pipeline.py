"""Batches of records: the same whoever prepares them, from any step on, and whatever is broken."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.bench.synthetic import synthetic_sample
from dtc_jax.config import ConfigError
from dtc_jax.data import pipeline
from dtc_jax.data import records as record_files
from dtc_jax.data.masks import box_mask
from dtc_jax.data.pipeline import BatchStream, BrokenRecord, HostBatch, RecordReader, evaluation_records, stack
from dtc_jax.data.records import encode
from dtc_jax.data.transform import shrink_mask
from tests.data import prepared
from tests.data.prepared import MODEL, SIZE

BATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("damaged"), broken=(2, 5))


def batches(
    folder: Path, start: int, count: int, process: int = 0, processes: int = 1, **options: int
) -> list[tuple[HostBatch, list[BrokenRecord]]]:
    """The rows that one of several processes has, of some steps."""
    rows = range(process * BATCH // processes, (process + 1) * BATCH // processes)
    with closing(BatchStream(prepared.reader(folder, **options), rows, BATCH, start, 100)) as stream:
        return [next(stream) for _ in range(count)]


def same(one: HostBatch, other: HostBatch) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def joined(parts: list[HostBatch]) -> HostBatch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def expected(damaged: Path) -> list[HostBatch]:
    """Steps 0 to 3 of one process, one thread, one sample after the other."""
    reader = prepared.reader(damaged)
    return [
        stack([reader.training_sample(place) for place in range(step * BATCH, (step + 1) * BATCH)]) for step in range(4)
    ]


def test_what_a_batch_is(expected: list[HostBatch]) -> None:
    kinds = {name: (values.shape, values.dtype) for name, values in expected[1].items()}
    images = ((8, 16, 16, 3), np.uint8)
    assert kinds == {
        **dict.fromkeys(("scene", "reference", "hint"), images),
        "mask": ((8, 16, 16, 1), np.uint8),
        "index": ((8,), np.uint32),
    }
    assert expected[1]["index"].tolist() == list(range(8, 16))
    assert set(np.unique(expected[1]["mask"])) == {0, 1}


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_and_threads(
    damaged: Path, expected: list[HostBatch], processes: int, threads: int
) -> None:
    parts = [batches(damaged, 0, 4, process, processes, threads=threads) for process in range(processes)]
    for step, batch in enumerate(expected):
        assert same(joined([part[step][0] for part in parts]), batch), step


def test_any_number_of_workers(damaged: Path, expected: list[HostBatch]) -> None:
    """Rows 4 to 7, as the second of two processes has them, in two worker processes, and from the second step on."""
    for step, (batch, _) in enumerate(batches(damaged, 1, 3, 1, 2, workers=2), start=1):
        assert same(batch, {name: values[4:] for name, values in expected[step].items()}), step


@pytest.mark.parametrize("start", [1, 3])
def test_from_any_step_on(damaged: Path, expected: list[HostBatch], start: int) -> None:
    for step, (batch, _) in enumerate(batches(damaged, start, 4 - start), start=start):
        assert same(batch, expected[step]), step


def test_rows_need_not_be_neighbours(damaged: Path, expected: list[HostBatch]) -> None:
    with closing(BatchStream(prepared.reader(damaged), [1, 2, 6], BATCH, 2, 5)) as stream:
        batch, _ = next(stream)
    assert same(batch, {name: values[[1, 2, 6]] for name, values in expected[2].items()})


def test_half_of_the_masks_are_boxes(folder: Path) -> None:
    reader = prepared.reader(folder, flip_probability=0)
    fine = [synthetic_sample(number, SIZE, 1) for number in range(10)]
    kinds = []
    for place in range(200):
        sample, mask = fine[reader.order.record(place)], reader.training_sample(place).arrays["mask"][..., 0]
        is_box = np.array_equal(mask, shrink_mask(box_mask(sample.box, SIZE, SIZE), 16))
        is_fine = np.array_equal(mask, shrink_mask(sample.mask, 16))
        assert is_box != is_fine
        kinds.append(is_box)
    assert 75 <= sum(kinds) <= 125


def test_every_place_has_augmentation_of_its_own(folder: Path) -> None:
    """A record does not look the same in two epochs."""
    reader = prepared.reader(folder, box_probability=0, flip_probability=0)
    first, second = (
        next(
            reader.training_sample(place).arrays["reference"]
            for place in range(10 * epoch, 10 * epoch + 10)
            if reader.order.record(place) == 4
        )
        for epoch in range(2)
    )
    assert np.abs(first.astype(int) - second).max() > 20


# ---------------------------------------------------------------------------------------------------------- broken


def test_broken_records_are_replaced_in_their_slots(folder: Path, damaged: Path) -> None:
    whole, broken = prepared.reader(folder), prepared.reader(damaged)
    replaced = []
    for place in range(20):
        loaded = broken.training_sample(place)
        number = whole.order.record(place)
        if number not in (2, 5):
            assert same(loaded.arrays, whole.training_sample(place).arrays) and not loaded.broken
            continue
        replaced.append(number)
        assert loaded.broken[0].number == number
        assert f"'{number:06d}'" in loaded.broken[0].reason and loaded.broken[0].split == "train"
        # What stands in is a record of the same epoch, made with the slot's own random numbers.
        neighbour = whole.order.record(place, len(loaded.broken))
        assert neighbour not in (2, 5) and loaded.arrays["index"] == place
        augmentation = pipeline.draw_augmentation(place, whole.data)
        sample, _ = whole._read(neighbour)
        assert np.array_equal(loaded.arrays["hint"], pipeline.make_sample(sample, augmentation, MODEL)["hint"])
    assert sorted(replaced) == [2, 2, 5, 5]


def test_broken_records_are_told_of(damaged: Path) -> None:
    for options in ({}, {"workers": 2}):
        told = [record for _, records in batches(damaged, 0, 3, **options) for record in records]
        # 24 places: two epochs of ten, and four of a third.
        assert {record.number for record in told} == {2, 5} and len(told) >= 4
        assert all(record.split == "train" and "decoded" in record.reason for record in told)


def test_other_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = prepared.reader(folder)
    monkeypatch.setattr(record_files.time, "sleep", lambda seconds: None)
    good, tries = reader._records, []

    class Files:
        """Records 0 and 1 cannot be read, 1 only at first; 2 has no mask, 3 another size."""

        def __getitem__(self, number: int) -> object:
            tries.append(number)
            if number == 0 or (number == 1 and tries.count(1) < 3):
                raise RuntimeError("storage\nfailed")
            if number == 2:
                return encode(synthetic_sample(2, SIZE)._replace(mask=np.zeros((SIZE, SIZE), np.uint8)))
            return encode(synthetic_sample(3, 16)) if number == 3 else good[number]

    reader._records = Files()  # type: ignore[assignment]
    told = {}
    for place in range(10):
        told.update({record.number: record.reason for record in reader.training_sample(place).broken})
    assert told.keys() == {0, 2, 3}
    assert told[0] == "record number 0: cannot be read (RuntimeError: storage failed)"
    assert "mask is empty" in told[2] and "(16, 16)" in told[3] and "32 pixels" in told[3]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder = prepared.write(tmp_path, train=3, broken=(0, 1, 2))
    with pytest.raises(ConfigError, match=r"3 records in a row cannot be used, the last: record '00000\d'"):
        batches(folder, 0, 1)


def test_workers_live_as_long_as_their_parent(folder: Path) -> None:
    """Signals to all processes leave them alone; a worker that is killed is an error, and a killed parent ends them."""
    code = f"""
import multiprocessing, os, signal, sys, time
from pathlib import Path
from dtc_jax.config import ConfigError
from dtc_jax.data.pipeline import BatchStream
from tests.data import prepared

stream = BatchStream(prepared.reader(Path({str(folder)!r}), workers=2), range(8), 8, 0, 100000)
next(stream)
workers = [worker.pid for worker in multiprocessing.active_children()]
for worker in workers:
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
time.sleep(0.3)
for _ in range(5):
    next(stream)
os.kill(workers[0], signal.SIGKILL)
try:
    for _ in range(1000):
        next(stream)
except ConfigError as error:
    print(error)
print(workers[1], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    message, survivor = done.stdout.splitlines()
    assert "a worker process was ended from outside" in message
    deadline = time.monotonic() + 60
    while is_running(int(survivor)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether there is such a process, and it has not ended (where nobody fetches its exit code, it stays listed)."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


# ---------------------------------------------------------------------------------------------------- errors of use


def test_wrong_data_sets_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        prepared.reader(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no split 'validation', only test, train"):
        prepared.reader(folder, split="validation")
    small = MODEL.__class__(image_size=64)
    with pytest.raises(ConfigError, match=r"stored at 32 pixels, model\.image_size = 64; build it again at 64"):
        RecordReader(prepared.config(folder), small)
    # TFDS writes no empty split; what is edited, or written by others, may have one.
    empty = tmp_path / "empty"
    shutil.copytree(folder / "synthetic", empty)
    info = empty / "1.0.0" / "dataset_info.json"
    description = json.loads(info.read_text())
    for split in description["splits"]:
        split["shardLengths"] = ["0"] if split["name"] == "test" else split["shardLengths"]
    info.write_text(json.dumps(description))
    with pytest.raises(ConfigError, match="split 'test' is empty"):
        prepared.reader(empty, split="test")


def test_readers_are_sent_to_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are opened, and a record is read, before several threads do so: together they might wait for ever."""
    reader = prepared.reader(folder)
    before = reader.training_sample(7).arrays
    sent = pickle.dumps(reader)
    opened: list[int] = []

    class Split:
        def __getitem__(self, number: int) -> object:
            opened.append(number)
            return reader._records[number]

    monkeypatch.setattr(pipeline, "open_split", lambda *_: Split())
    again = pickle.loads(sent)
    assert opened == [0]
    assert same(again.training_sample(7).arrays, before) and len(opened) == 2
    # No file handles are sent: a few kilobytes, whatever has been read.
    assert len(sent) < 20_000


# ------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_the_first_records_as_stored(folder: Path) -> None:
    batch, broken = evaluation_records(prepared.config(folder), MODEL, 7)
    assert not broken and batch["scene"].shape == (7, 16, 16, 3)
    # Three records: they start again, with the other mask.
    for name in ("scene", "reference"):
        np.testing.assert_array_equal(batch[name][:3], batch[name][3:6])
    stored = [synthetic_sample(number, SIZE, 2) for number in range(3)]
    by_hand = [shrink_mask(sample.mask, 16).sum() for sample in stored]
    boxes = [shrink_mask(box_mask(sample.box, SIZE, SIZE), 16).sum() for sample in stored]
    expected = [by_hand[0], boxes[1], by_hand[2], boxes[0]]
    assert batch["mask"].sum(axis=(1, 2, 3))[:4].tolist() == expected
