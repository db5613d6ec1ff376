"""Whose colours a result has."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dtc_jax.data.outline import MOST_SIDE
from dtc_jax.evaluation.color_histograms import (
    BINS,
    bhattacharyya_distance,
    color_histogram,
    nearest_is_own,
    reference_histogram,
)

RED, GREEN = (200, 30, 60), (20, 180, 90)


def test_histogram_and_distance_are_opencvs() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    images[1] //= 2
    images[2] = images[2] // 3 + 100
    found = np.stack([color_histogram(image.reshape(-1, 3)) for image in images])
    theirs = [cv2.calcHist([image], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3) for image in images]
    np.testing.assert_allclose(found, np.stack([one.reshape(-1) / 2000 for one in theirs]), rtol=1e-6)
    distances = bhattacharyya_distance(found, found)
    for first in range(3):
        for second in range(3):
            expected = cv2.compareHist(theirs[first], theirs[second], cv2.HISTCMP_BHATTACHARYYA)
            # Near 0 the root takes half of the digits that float32 has.
            assert distances[first, second] == pytest.approx(expected, abs=1e-3)
    assert distances[0, 1] > 0.2 and (np.abs(np.diagonal(distances)) < 1e-6).all()
    with pytest.raises(ValueError, match="needs pixels"):
        color_histogram(np.zeros((0, 3), np.uint8))


def _reference(size: int, background: int = 255) -> np.ndarray:
    """A disc, red above and green below, with a round hole, far from the picture's sides."""
    y, x = np.mgrid[:size, :size] + 0.5
    image = np.full((size, size, 3), background, np.uint8)
    radius = np.hypot(y - size / 2, x - size / 2) / size
    image[(radius < 0.3) & (y < size / 2)] = RED
    image[(radius < 0.3) & (y > size / 2)] = GREEN
    image[radius < 0.1] = 255
    return image


@pytest.mark.parametrize("size", [300, 3 * MOST_SIDE + 2])
@pytest.mark.parametrize("kind", ["white", "studio", "cut out"])
def test_of_a_reference_its_product_counts(kind: str, size: int) -> None:
    reference = _reference(size, 230 if kind == "studio" else 255)
    if kind == "cut out":
        alpha = (reference < 245).any(axis=-1, keepdims=True) * np.uint8(255)
        reference = np.concatenate([reference, alpha], axis=-1)
    found = reference_histogram(reference)
    halves = [color_histogram(np.array([color], np.uint8)).argmax() for color in (RED, GREEN)]
    assert found[halves] == pytest.approx([0.5, 0.5], abs=0.02), "a rim of a studio's backdrop stays"


def test_what_is_not_on_white_is_taken_whole() -> None:
    scene = np.random.default_rng(1).integers(0, 200, (30, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(reference_histogram(scene), color_histogram(scene.reshape(-1, 3)))
    blank = np.full((20, 20, 3), 255, np.uint8)
    assert reference_histogram(blank)[-1] == 1


def test_more_results_than_are_compared_at_once() -> None:
    histograms = np.random.default_rng(3).dirichlet(np.full(BINS**3, 0.1), 600)
    order = np.arange(600)
    order[[5, 400]] = order[[400, 5]]
    found = nearest_is_own(histograms[order], histograms)
    assert np.flatnonzero(found == 0).tolist() == [5, 400]


def test_nearest() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (4, 50, 3), dtype=np.uint8)
    references = np.stack([color_histogram(part) for part in pixels])
    own = np.stack([color_histogram(np.concatenate([part, pixels[0][:10]])) for part in pixels])
    assert nearest_is_own(own, references).tolist() == [1, 1, 1, 1]
    assert nearest_is_own(own[[1, 0, 2, 3]], references).tolist() == [0, 0, 1, 1]
    same = references[[0, 0, 2, 3]]
    assert nearest_is_own(own[[0, 0, 2, 3]], same).tolist() == [1, 1, 1, 1], "one photo in two cases"
