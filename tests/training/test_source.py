"""Batches of records on the mesh: the right rows, ahead of the step, and what is broken counted."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from dtc_jax import presets
from dtc_jax.config import ConfigError, ExperimentConfig, TrainingConfig
from dtc_jax.data.pipeline import BatchStream, BrokenRecord, stack
from dtc_jax.training.broken_records import BrokenLog, BrokenShare
from dtc_jax.training.record_source import local_rows, put_rows
from dtc_jax.training.run_directory import prepare_run_dir
from dtc_jax.training.sharding import batch_sharding, make_mesh
from dtc_jax.training.source import evaluation_batch, make_source, training_scenes
from tests.data import prepared

BATCH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.write(tmp_path_factory.mktemp("data"), broken=(2,))


def experiment(folder: Path, **data: Any) -> ExperimentConfig:
    options = {"max_broken": 0.2, **data}
    training = TrainingConfig(batch_size=BATCH, steps=50)
    return ExperimentConfig(model=presets.test(), data=prepared.config(folder, **options), training=training)


def expected(folder: Path, step: int) -> dict[str, np.ndarray]:
    reader = prepared.reader(folder)
    return stack([reader.training_sample(place) for place in range(step * BATCH, (step + 1) * BATCH)])


def assert_same(batch: Any, wanted: dict[str, np.ndarray]) -> None:
    assert batch.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(np.asarray(batch[name]), values, err_msg=name)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_batches_are_sharded_like_the_step_wants_them(folder: Path, fsdp: int) -> None:
    mesh = make_mesh(fsdp)
    with closing(make_source(experiment(folder), mesh)) as source:
        for step in (0, 1, 2):
            batch = source(step)
            assert all(values.sharding == batch_sharding(mesh) for values in batch.values())
            assert batch["scene"].shape == (BATCH, 16, 16, 3)
            assert_same(batch, expected(folder, step))


def test_any_step_first_and_any_step_next(folder: Path) -> None:
    with closing(make_source(experiment(folder), make_mesh(1, jax.devices()[:2]))) as source:
        for step in (3, 4, 1, 2, 2):
            assert_same(source(step), expected(folder, step))


def shuffled_mesh() -> Mesh:
    """Devices in an order of their own, as a mesh that follows a machine's wiring has them."""
    devices = np.array(jax.devices())[[5, 2, 7, 0, 3, 6, 1, 4]].reshape(2, 4)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_rows_follow_the_mesh_and_not_the_number_of_the_device(folder: Path) -> None:
    with closing(make_source(experiment(folder), shuffled_mesh())) as source:
        batch = source(0)
    assert_same(batch, expected(folder, 0))
    rows = {shard.device.id: shard.data.item() for shard in batch["index"].addressable_shards}
    assert rows == {5: 0, 2: 1, 7: 2, 0: 3, 3: 4, 6: 5, 1: 6, 4: 7}


class OfOneProcess:
    """A sharding as a process sees it that owns some of the devices."""

    def __init__(self, mesh: Mesh, devices: set[int]) -> None:
        self.sharding, self.devices = batch_sharding(mesh), devices

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict[Any, Any]:
        spans = self.sharding.addressable_devices_indices_map(shape)
        return {device: span for device, span in spans.items() if device.id in self.devices}


def test_rows_of_a_process_are_those_of_its_devices() -> None:
    first, second = OfOneProcess(shuffled_mesh(), {0, 1, 2, 3}), OfOneProcess(shuffled_mesh(), {4, 5, 6, 7})
    assert local_rows(first, 16) == (2, 3, 6, 7, 8, 9, 12, 13)  # type: ignore[arg-type]
    assert local_rows(second, 16) == (0, 1, 4, 5, 10, 11, 14, 15)  # type: ignore[arg-type]
    # A mesh axis that copies the batch does not read it twice.
    copies = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    assert local_rows(batch_sharding(copies), 8) == tuple(range(8))


def test_other_arrays_of_a_record_reach_the_devices() -> None:
    tokens = np.arange(8 * 3, dtype=np.float16).reshape(8, 3)
    batch = put_rows({"tokens": tokens}, range(8), 8, batch_sharding(shuffled_mesh()))
    np.testing.assert_array_equal(np.asarray(batch["tokens"]), tokens)
    assert batch["tokens"].dtype == np.float16


def test_batches_are_ready_before_they_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    take = BatchStream.__next__

    def counted(stream: BatchStream) -> Any:
        result = take(stream)
        made.append(int(result[0]["index"][0]) // BATCH)
        return result

    monkeypatch.setattr(BatchStream, "__next__", counted)
    with closing(make_source(experiment(folder, prefetch=3), make_mesh(1))) as source:
        source(0)
        wait_for(lambda: len(made) >= 4)
        # The one that was taken, and three ahead; no more, however long the step takes.
        time.sleep(0.2)
        assert made == [0, 1, 2, 3]
        source(1)
        wait_for(lambda: len(made) >= 5)
    assert made[:5] == [0, 1, 2, 3, 4]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_ends_the_thread(folder: Path) -> None:
    before = set(threading.enumerate())
    source = make_source(experiment(folder), make_mesh(1))
    source(0)
    assert any(thread.name == "batches" for thread in set(threading.enumerate()) - before)
    source.close()
    assert not any(thread.name == "batches" for thread in set(threading.enumerate()) - before)
    source.close()


# ---------------------------------------------------------------------------------------------------------- broken


def record(number: int) -> BrokenRecord:
    return BrokenRecord("train", number, f"record '{number}': cut off")


def test_share_is_taken_of_at_least_an_epoch() -> None:
    told: list[BrokenRecord] = []
    share = BrokenShare(0.02, 100, told.append)
    share.count([record(4)], 8)
    share.count([record(4), record(4)][:1], 8)
    assert [one.number for one in told] == [4]
    with pytest.raises(ConfigError, match=r"2 broken records, met 3 times in 24 samples, .*max_broken = 0\.02.*'9'"):
        share.count([record(9)], 8)
    assert [one.number for one in told] == [4, 9]
    # Over several epochs the same record counts each time, and so do the samples.
    share = BrokenShare(0.02, 100, told.append)
    for _ in range(50):
        share.count([record(1)], 50)
    with pytest.raises(ConfigError, match="met 51 times in 2502 samples"):
        share.count([record(1)], 2)


def test_too_many_broken_records_end_the_run(folder: Path) -> None:
    told: list[BrokenRecord] = []
    source = make_source(experiment(folder, max_broken=0.05), make_mesh(1), told.append)
    with closing(source), pytest.raises(ConfigError, match=r"data\.max_broken = 0\.05"):
        for step in range(3):
            source(step)
    assert [one.number for one in told] == [2]


def test_broken_records_are_written_down_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "dtc_jax.train")
    BrokenLog(tmp_path)(record(3))
    log = BrokenLog(tmp_path)
    log(record(5))
    log(record(3))
    lines = [json.loads(line) for line in (tmp_path / "broken_records.jsonl").read_text().splitlines()]
    assert lines == [
        {"split": "train", "number": 3, "reason": "record '3': cut off"},
        {"split": "train", "number": 5, "reason": "record '5': cut off"},
    ]
    assert "broken record replaced: train 5: record '5': cut off" in caplog.messages


# ---------------------------------------------------------------------------------------------------- errors of use


def test_what_cannot_work_is_named(folder: Path) -> None:
    config = experiment(folder)
    mesh = make_mesh(1)
    with pytest.raises(ConfigError, match=r"training\.batch_size = 12 must be a multiple"):
        make_source(dataclasses.replace(config, training=TrainingConfig(batch_size=12)), mesh)
    long = TrainingConfig(batch_size=BATCH, steps=2**29 + 1)
    with pytest.raises(ConfigError, match=r"2\*\*32 samples .* at most 536870912 steps"):
        make_source(dataclasses.replace(config, training=long), mesh)
    with pytest.raises(ConfigError, match=r"data\.kind = records: .* stage vgg"):
        make_source(dataclasses.replace(config, stage="vgg"), mesh)
    with pytest.raises(ConfigError, match="no such folder"):
        make_source(experiment(folder / "absent"), mesh)
    with pytest.raises(ConfigError, match=r"data\.evaluation_split = validation: .* has test, train; name one"):
        make_source(experiment(folder, evaluation_split="validation"), mesh)


def test_who_draws_no_samples_needs_no_held_out_ones(folder: Path) -> None:
    config = experiment(folder, evaluation_split="validation")
    undrawn = dataclasses.replace(config, training=dataclasses.replace(config.training, sample_every=0))
    with closing(make_source(undrawn, make_mesh(1))) as source:
        assert_same(source(0), expected(folder, 0))


def test_a_run_goes_on_where_its_data_has_been_copied_to(folder: Path, tmp_path: Path) -> None:
    config = experiment(folder)
    prepare_run_dir(config, tmp_path / "run", write=True, resumed=True)
    described = json.loads((tmp_path / "run" / "data_set.json").read_text())
    mark = described.pop("fingerprint")
    assert described == {"name": "synthetic", "version": "1.0.0", "size": 32, "records": 10} and len(mark) == 12
    # One of its records is broken, in the copy, too.
    copy = prepared.write(tmp_path / "copy", broken=(2,))
    prepare_run_dir(experiment(copy, workers=3), tmp_path / "run", write=True, resumed=True)
    other = prepared.write(tmp_path / "other", train=9)
    with pytest.raises(ConfigError, match=r"9 records .*, .*run was started with synthetic 1\.0\.0 \(10 records"):
        prepare_run_dir(experiment(other), tmp_path / "run", write=True, resumed=True)
    # Other pictures under the same name, as many of them.
    other = prepared.write(tmp_path / "changed", seed=7)
    with pytest.raises(
        ConfigError, match=rf"fingerprint (?!{mark})\w+\), .*10 records of 32 pixels, fingerprint {mark}"
    ):
        prepare_run_dir(experiment(other), tmp_path / "run", write=True, resumed=True)
    # A run of a version that kept none goes on.
    (tmp_path / "run" / "data_set.json").write_text(json.dumps(described))
    prepare_run_dir(experiment(copy), tmp_path / "run", write=True, resumed=True)
    with pytest.raises(ConfigError, match="another `data`"):
        prepare_run_dir(experiment(folder, rotation_degrees=3.0), tmp_path / "run", write=True, resumed=True)


# ------------------------------------------------------------------------------------------------------- evaluation


def test_held_out_samples(folder: Path) -> None:
    config = experiment(folder)
    batch = evaluation_batch(config, 5)
    kinds = {name: (values.shape, values.dtype) for name, values in batch.items()}
    image = ((5, 16, 16, 3), np.uint8)
    assert kinds == {**dict.fromkeys(("scene", "reference", "hint"), image), "mask": ((5, 16, 16, 1), np.uint8)}
    again = evaluation_batch(config, 5)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_scenes_of_the_first_training_samples(folder: Path) -> None:
    np.testing.assert_array_equal(np.asarray(training_scenes(experiment(folder), 8)), expected(folder, 0)["scene"])
