"""Small prepared data sets for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtc_jax import presets
from dtc_jax.bench.synthetic import synthetic_sample, write_data_set
from dtc_jax.config import DataConfig, ModelConfig
from dtc_jax.data.pipeline import RecordReader
from dtc_jax.data.records import encode

SIZE = 32
MODEL: ModelConfig = presets.test()
"""Images of 16 pixels: half the size of what is stored."""


def records(count: int, seed: int, broken: tuple[int, ...] = ()) -> Iterator[Mapping[str, Any]]:
    """Records of 32 pixels; the scenes of those in `broken` are cut off."""
    for number in range(count):
        record = encode(synthetic_sample(number, SIZE, seed))
        yield {**record, "scene": record["scene"][:200]} if number in broken else record


def write(folder: Path, train: int = 10, test: int = 3, broken: tuple[int, ...] = (), seed: int = 1) -> Path:
    """A data set with two splits; `seed` decides its pictures."""
    return write_data_set(folder, {"train": records(train, seed, broken), "test": records(test, seed + 1)}, SIZE)


def config(folder: Path, **options: Any) -> DataConfig:
    """A few threads, and whatever the test says."""
    return DataConfig(kind="records", path=str(folder), **{"threads": 2, **options})


def reader(folder: Path, **options: Any) -> RecordReader:
    """Of the training split."""
    return RecordReader(config(folder, **options), MODEL)
