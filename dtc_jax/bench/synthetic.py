"""Prepared data sets of made-up pictures, to measure and to test with: as large as photographs when compressed."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from dtc_jax.data.masks import bounding_box, largest_rectangle
from dtc_jax.data.records import Sample, encode, features, import_tfds

GRAIN = 8.0
"""Standard deviation of the noise in scenes: with it, 512 pixels take 270 kB, as a detailed photograph does."""


def write_data_set(folder: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]], size: int) -> Path:
    """Write encoded records (`records.encode`) as a prepared data set.

    Args:
        folder: NAME/VERSION is made in it; records that are there already are kept as they are.
        splits: Records by split.
        size: Height and width of scenes and masks.

    Returns:
        The folder.
    """
    builder = _builder_class()(splits, size, data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # progress bars
        builder.download_and_prepare(download_dir=str(folder / "downloads"))
    return folder


@functools.cache
def _builder_class() -> Any:
    tfds = import_tfds()

    class Synthetic(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, name-defined]
        """Takes records that are encoded already."""

        name = "synthetic"
        VERSION = tfds.core.Version("1.0.0")
        # Nothing is downloaded: TFDS need not look for checksums.
        url_infos = None

        def __init__(self, splits: Mapping[str, Iterable[Mapping[str, Any]]], size: int, **options: Any) -> None:
            self._splits, self._size = splits, size
            super().__init__(**options)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features(self._size), disable_shuffling=True)

        def _split_generators(self, download_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(records) for split, records in self._splits.items()}

        def _generate_examples(self, records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
            yield from enumerate(records)

    return Synthetic


def synthetic_records(count: int, size: int, seed: int = 0) -> Iterator[Mapping[str, Any]]:
    """Records of pictures like photographs in weight: smooth colours with grain, a ragged mask, a product on white."""
    for number in range(count):
        yield encode(synthetic_sample(number, size, seed))


def synthetic_sample(number: int, size: int, seed: int = 0) -> Sample:
    """The `number`-th sample; its reference is as wide as its scene."""
    random = np.random.default_rng([seed, number])
    mask = _blob(random, size, spread=0.3)
    product = _blob(random, size, spread=0.45)
    reference = np.where(product[..., None] == 1, _picture(random, size), np.uint8(255))
    rectangle, box = largest_rectangle(mask), bounding_box(mask)
    return Sample(f"{number:06d}", _picture(random, size), mask, reference, rectangle, box, "synthetic")


def _picture(random: np.random.Generator, size: int) -> UInt8[np.ndarray, "size size 3"]:
    colors = random.integers(0, 256, (24, 24, 3)).astype(np.uint8)
    smooth = cv2.resize(colors, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = random.standard_normal((size, size, 3), np.float32) * GRAIN
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def _blob(random: np.random.Generator, size: int, spread: float) -> UInt8[np.ndarray, "size size"]:
    """An ellipse with a wavy outline near the middle, {0, 1}; `spread` is its largest radius over the size."""
    y, x = np.mgrid[:size, :size] / size - random.uniform(0.45, 0.55, 2)[:, None, None]
    radius = spread * random.uniform(0.5, 0.9, 2)
    angle = np.arctan2(y, x)
    wave = sum(random.uniform(0, 0.06) * np.sin(k * angle + random.uniform(0, 6)) for k in (3, 7, 13))
    return (np.hypot(y / radius[0], x / radius[1]) < 1 + wave).astype(np.uint8)
