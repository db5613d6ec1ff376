"""The window holds the mask, lies in the photo where it can, and nothing outside the mask ever changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dtc_jax.data.masks import bounding_box
from dtc_jax.data.window import (
    MIN_CONTEXT,
    Window,
    crop_window,
    default_feather,
    extract,
    extract_mask,
    put_back,
)


def _random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    random = np.random.default_rng(seed)
    height, width = random.integers(3, 90, 2)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.integers(1, 4)):
        y, x = random.integers(0, height), random.integers(0, width)
        mask[y : y + random.integers(1, height + 1), x : x + random.integers(1, width + 1)] = 1
    return random.integers(0, 256, (height, width, 3), np.uint8), mask, random


@pytest.mark.parametrize("seed", range(60))
def test_properties_on_random_masks(seed: int) -> None:
    scene, mask, random = _random_case(seed)
    height, width = mask.shape
    context = float(random.choice([0.0, 0.3, 0.65, 2.0]))
    window = crop_window(mask, context)
    y0, x0, y1, x1 = bounding_box(mask)
    box_side = max(y1 - y0, x1 - x0)

    assert window.top <= y0 and window.left <= x0, "the mask starts in the window"
    assert window.top + window.side >= y1 and window.left + window.side >= x1, "and ends in it"
    assert window.side <= max(math.ceil(box_side * (1 + context)), 16)
    assert window.side >= math.ceil(box_side * (1 + min(context, MIN_CONTEXT)))
    for start, length in [(window.top, height), (window.left, width)]:
        if window.side <= length:
            assert start >= 0 and start + window.side <= length, "no invented pixels where the photo is large enough"
        else:
            assert start <= 0 and start + window.side >= length, "the whole photo where it is not"

    size = 16
    small_mask = extract_mask(mask, window, size)
    assert small_mask.dtype == np.uint8 and set(np.unique(small_mask)) <= {0, 1} and small_mask.any()
    small = extract(scene, window, size)
    assert small.shape == (size, size, 3) and small.dtype == np.uint8

    generated = random.random((size, size, 3))
    for feather in (0, 3):
        result = put_back(scene, generated, window, mask, feather)
        assert result.shape == scene.shape and result.dtype == np.uint8
        np.testing.assert_array_equal(result[mask == 0], scene[mask == 0])
    assert result is not scene


def test_context_sets_the_share_of_the_mask() -> None:
    mask = np.zeros((400, 500), np.uint8)
    mask[100:160, 200:300] = 1
    window = crop_window(mask, 0.65)
    assert window.side == 165
    assert abs(window.top + window.side / 2 - 130) <= 1 and abs(window.left + window.side / 2 - 250) <= 1
    assert crop_window(mask, 0.0).side == 100
    mask[:] = 0
    mask[0, 0] = 1
    assert crop_window(mask, 0.65) == Window(0, 0, 16)


def test_a_photo_that_is_too_small_gives_less_context_before_it_is_padded() -> None:
    mask = np.zeros((100, 140), np.uint8)
    mask[10:90, 30:100] = 1
    assert crop_window(mask, 0.65) == Window(0, 15, 100)
    mask[:] = 1
    window = crop_window(mask, 0.65)
    assert window.side == 154 and window.top == -27 and window.left == -7


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="empty"):
        crop_window(np.zeros((4, 4), np.uint8))
    for context in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="context"):
            crop_window(np.ones((4, 4), np.uint8), context)


def test_the_way_there_and_back_is_the_identity_at_the_models_size() -> None:
    scene, mask, _ = _random_case(3)
    window = crop_window(mask)
    patch = extract(scene, window, window.side)
    np.testing.assert_array_equal(put_back(scene, patch, window, mask), scene)
    np.testing.assert_array_equal(put_back(scene, patch / 255, window, mask, feather=2), scene)


def test_a_thin_mask_survives_shrinking_and_covers_all_it_touches() -> None:
    mask = np.zeros((300, 300), np.uint8)
    mask[20:280, 151] = 1
    window = crop_window(mask)
    small = extract_mask(mask, window, 16)
    rows = np.flatnonzero(small.any(axis=1))
    assert small.any(axis=0).sum() in (1, 2)
    scale = window.side / 16
    assert rows[0] * scale + window.top <= 20 and (rows[-1] + 1) * scale + window.top >= 280


def test_padding_repeats_the_edge_and_masks_nothing() -> None:
    scene = np.zeros((2, 4, 3), np.uint8)
    scene[0], scene[1] = 10, 200
    window = Window(-1, 0, 4)
    np.testing.assert_array_equal(extract(scene, window, 4)[:, 0, 0], [10, 10, 200, 200])
    np.testing.assert_array_equal(extract_mask(np.ones((2, 4), np.uint8), window, 4)[:, 0], [0, 1, 1, 0])


def test_feather_blends_inside_only() -> None:
    scene, mask = np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8)
    mask[2:7] = 1
    result = put_back(scene, np.ones((9, 9, 3)), Window(0, 0, 9), mask, feather=2)
    np.testing.assert_array_equal(result[:, 4, 0] > 0, mask[:, 4] > 0)
    assert result[2, 4, 0] < result[3, 4, 0] < result[4, 4, 0] == 255
    assert (result[4] == 255).all(), "the photo's border is no edge of the mask"


@pytest.mark.parametrize("seed", range(20))
def test_feather_never_reaches_outside_and_counts_from_the_masks_edge(seed: int) -> None:
    scene, mask, random = _random_case(seed)
    window = crop_window(mask, float(random.choice([0.0, 0.65])))
    white = put_back(np.zeros_like(scene), np.ones((16, 16, 3)), window, mask, feather=4)[..., 0] / 255
    padded = np.pad(mask, 5, mode="edge")
    for y, x in np.argwhere(mask):
        around = padded[y : y + 11, x : x + 11]
        gaps = np.argwhere(around == 0) - 5
        distance = np.sqrt((gaps**2).sum(axis=1)).min() if len(gaps) else 99
        assert abs(white[y, x] - min(distance / 5, 1)) < 0.06, (y, x)
    np.testing.assert_array_equal(white[mask == 0], 0)


def test_default_feather_is_one_pixel_of_the_models() -> None:
    mask = np.zeros((400, 400), np.uint8)
    mask[100:300, 100:300] = 1
    window = Window(0, 0, 400)
    assert default_feather(window, mask, 400) == default_feather(window, mask, 512) == 0
    assert default_feather(window, mask, 128) == 3
    mask[:] = 0
    mask[100:300, 100:109] = 1
    assert default_feather(window, mask, 64) == 1, "a quarter of a thin mask's depth"
    mask[:, 101:] = 0
    assert default_feather(window, mask, 64) == 0
    assert default_feather(window, np.ones((400, 400), np.uint8), 64) == 6, "no edge at all"
