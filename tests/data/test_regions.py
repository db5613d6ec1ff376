"""Which parts of a mask are places of the product."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax.data.regions import split_regions


def _mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (200, 300)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] = 1
    return mask


LEFT, RIGHT, LOW = (20, 10, 90, 80), (30, 150, 80, 200), (120, 20, 180, 60)


def test_each_place_from_left_to_right() -> None:
    found = split_regions(_mask(RIGHT, LOW, LEFT))
    assert [int(region.sum()) for region in found] == [4900, 2400, 2500]
    for region, box in zip(found, (LEFT, LOW, RIGHT), strict=True):
        np.testing.assert_array_equal(region, _mask(box))


def test_largest_and_together() -> None:
    mask = _mask(RIGHT, LEFT, (0, 299, 1, 300))
    np.testing.assert_array_equal(split_regions(mask, "largest"), [_mask(LEFT)])
    np.testing.assert_array_equal(split_regions(mask, "together"), [mask])


def test_specks_are_no_places() -> None:
    mask = _mask(LEFT, RIGHT)
    random = np.random.default_rng(0)
    noisy = mask.copy()
    for y, x in random.integers(100, 195, (30, 2)):
        noisy[y : y + 3, x : x + 4] = 1
    np.testing.assert_array_equal(split_regions(noisy), split_regions(mask))
    # Small beside nothing larger is what the user wants.
    for box in [(5, 5, 6, 6), (0, 0, 1, 300), (199, 299, 200, 300)]:
        np.testing.assert_array_equal(split_regions(_mask(box)), [_mask(box)])
    pair = split_regions(_mask((5, 5, 9, 9), (5, 50, 9, 54)))
    assert len(pair) == 2, "two small places are places"


def test_a_hairline_does_not_part_a_place() -> None:
    mask = _mask((20, 10, 90, 200))
    mask[:, 100] = 0
    np.testing.assert_array_equal(split_regions(mask), [mask])
    mask[:, 100:108] = 0
    assert len(split_regions(mask)) == 2
    corner = _mask((10, 10, 40, 40), (40, 40, 80, 80))
    assert len(split_regions(corner)) == 1


@pytest.mark.parametrize("seed", range(10))
def test_regions_are_disjoint_parts_of_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = (random.random((40, 60)) > random.choice([0.5, 0.7, 0.9])).astype(np.uint8)
    total = np.sum(split_regions(mask), axis=0)
    assert total.max() == 1 and (total <= mask).all()
    assert split_regions(np.ones((5, 7), np.uint8))[0].all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="empty"):
        split_regions(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="each, largest, together"):
        split_regions(np.ones((4, 4), np.uint8), "all")  # type: ignore[arg-type]
