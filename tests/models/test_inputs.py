"""Ranges and sizes of what the networks read."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch

CONFIG = presets.test()


def batch() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    images = {name: generator.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8) for name in ("scene", "hint")}
    return {
        **images,
        "reference": generator.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8),
        "mask": generator.integers(0, 2, (2, 16, 16, 1), dtype=np.uint8),
        "index": np.array([5, 6], np.uint32),
    }


def test_ranges() -> None:
    raw = batch()
    for name in ("scene", "hint", "reference"):
        raw[name][0, 0, 0] = 0
        raw[name][0, 0, 1] = 255
    result = normalize_batch(raw, CONFIG)
    np.testing.assert_array_equal(result["scene"][0, 0, :2, 0], [-1, 1])
    np.testing.assert_array_equal(result["hint"][0, 0, :2, 0], [0, 1])
    np.testing.assert_allclose(result["reference"][0, 0, 0], [-2.1179, -2.0357, -1.8044], atol=1e-4)
    np.testing.assert_allclose(result["reference"][0, 0, 1], [2.2489, 2.4286, 2.6400], atol=1e-4)
    np.testing.assert_array_equal(result["mask"], raw["mask"])
    np.testing.assert_array_equal(result["index"], raw["index"])
    assert all(result[name].dtype == np.float32 for name in ("scene", "hint", "reference", "mask"))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mask", (2, 16, 20, 1), "scene, hint and mask need the same size, not scene 16x16, hint 16x16, mask 16x20"),
        ("scene", (2, 16, 18, 3), "scene is 16x18; height and width must be divisible by 4"),
        ("reference", (2, 16, 24, 3), "reference is 16x24; the reference encoder takes 16x16"),
    ],
)
def test_wrong_sizes_are_named(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize_batch({**batch(), name: np.zeros(shape, np.uint8)}, CONFIG)


def test_latent_mask_takes_the_first_pixel_of_every_cell() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (1, 8, 12, 1)).astype(np.float32)
    result = latent_mask(mask, 4)
    assert result.shape == (1, 2, 3, 1)
    for row in range(2):
        for column in range(3):
            assert result[0, row, column, 0] == mask[0, 4 * row, 4 * column, 0]
    with pytest.raises(ValueError, match=r"8x12.*divisible by 8"):
        latent_mask(mask, 8)


def test_masked_scene_is_grey_in_the_hole() -> None:
    scene, mask = np.full((1, 2, 2, 3), 0.7, np.float32), np.zeros((1, 2, 2, 1), np.float32)
    mask[0, 0, 0] = 1
    result = masked_scene(scene, mask)
    np.testing.assert_array_equal(result[0, 0, 0], 0)
    np.testing.assert_array_equal(result[0, 0, 1], scene[0, 0, 1])
