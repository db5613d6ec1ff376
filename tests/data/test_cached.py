"""Caches as files, without the networks that fill them: finishing one, and evaluation on its training split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dtc_jax.data.cached import (
    AUGMENTATION,
    Cache,
    array_shapes,
    cache_features,
    pack_augmentation,
    settings,
    stored_augmentation,
)
from dtc_jax.data.pipeline import RecordReader, evaluation_records
from dtc_jax.data.records import SCHEMA, features, find_data_set
from dtc_jax.data.shards import PLAN, ShardedWriter, plan_shards
from tests.data import prepared
from tests.data.prepared import MODEL, SIZE


def test_what_killed_processes_left_is_not_in_a_finished_data_set(tmp_path: Path) -> None:
    shards = plan_shards({"train": 4}, 2)
    writer = ShardedWriter(tmp_path, "rest", "1.0.0", features(SIZE), shards)
    assert not writer.open({"a": 1})
    records = list(prepared.records(4, 1))
    writer.write(shards[0], records[:2])
    # As a process leaves them that is killed in the middle of a file.
    for name in ("tmp-4711-train-1", f"{PLAN}.4711.tmp"):
        (writer.folder / name).write_bytes(b"half of it")
    assert writer.open({"a": 1}) and writer.missing() == [shards[1]]
    writer.write(shards[1], records[2:])
    folder = writer.finish({"schema": SCHEMA}, "of a test")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [shard.file("rest") for shard in shards] + ["dataset_info.json", "features.json", "metadata.json"]
    )
    assert find_data_set(folder).splits == {"train": 4}


def test_evaluation_on_the_training_split_of_a_cache_is_not_augmented(tmp_path: Path) -> None:
    options = {"flip_probability": 1.0, "box_probability": 1.0, "evaluation_split": "train"}
    original = prepared.config(prepared.write(tmp_path / "original", train=3), **options)
    data = prepared.config(tmp_path / "cache", cached=("tokens",), **options)
    plain, shapes = RecordReader(original, MODEL), array_shapes(MODEL, data.cached)
    cache = Cache(
        variants={"train": 2},
        cached=data.cached,
        dtype="float32",
        made_with=settings(data, MODEL, data.cached),
        networks={},
        compute_dtype="float32",
        frozen_dtype="float32",
        source={},
    )
    shards = plan_shards({"train": 6}, 6)
    writer = ShardedWriter(tmp_path / "cache", "c", "1.0.0", cache_features(SIZE, shapes, np.float32), shards)
    writer.open({})
    places = {(plain.order.record(place), place // 3): place for place in range(6)}
    entries = [plain.training_entry(places[record, variant]) for variant in range(2) for record in range(3)]
    writer.write(
        shards[0],
        [
            {
                **{name: value.decode() if name in ("id", "category") else value for name, value in record.items()},
                AUGMENTATION: pack_augmentation(augmentation),
                "tokens": np.ones(shapes["tokens"], np.float32),
            }
            for _, _, record, augmentation in entries
        ],
    )
    writer.finish({"schema": SCHEMA, "cache": dataclasses.asdict(cache)}, "of a test")

    reader = RecordReader(data, MODEL)
    assert reader.training_entry(0).augmentation.flip and "tokens" in reader.training_entry(0).arrays
    assert stored_augmentation(reader.evaluation_entry(0).record) is not None, "the cache's own entries are read"
    expected, _ = evaluation_records(original, MODEL, 5)
    found, _ = evaluation_records(data, MODEL, 5)
    assert found.keys() == expected.keys(), "the cache's arrays are of augmented samples"
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
