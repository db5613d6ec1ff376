"""What has been compiled once serves every photo, whatever its size, and any number of images."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax.inference.pipeline import Pipeline
from tests.inference.compilations import compilations


def photo(height: int, width: int, regions: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(height)
    mask = np.zeros((height, width), np.uint8)
    for number in range(regions):
        mask[height // 4 : height // 2, 4 + 20 * number : 20 + 20 * number] = 1
    return (
        random.integers(0, 256, (height, width, 3), np.uint8),
        mask,
        random.integers(0, 240, (width, 30, 3), np.uint8),
    )


def test_a_second_photo_is_not_compiled_for(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with compilations(caplog) as first:
        pipeline(*photo(37, 51))
    assert sum("generate" in name for name in first) == 1, "this counts nothing"
    with compilations(caplog) as more:
        pipeline(*photo(90, 44), seed=3)
        pipeline(*photo(30, 120), seed=4, num_images=3, guidance_scale=3.0)
        pipeline(*photo(48, 64, regions=2), context=0.2, feather=2)
        pipeline(photo(200, 200)[0], None, photo(30, 30)[2], box=(9, 99, 30, 190))
    assert more == []


def test_batches_of_images_are_not_compiled_for_their_number(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline(*photo(37, 51), num_images=2, batch_size=2)
    with compilations(caplog) as more:
        for number in (1, 3):
            pipeline(*photo(60, 60), num_images=number, batch_size=2)
    assert more == []
