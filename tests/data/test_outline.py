"""The outline that a reference on white gives a box mask, and what the rest of the box is filled with."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax.data.outline import (
    BOX_FILL,
    COVERED,
    MOST_SIDE,
    Outline,
    fill_hole,
    is_box,
    outline_in_box,
    product_coverage,
)

RED = (180, 30, 40)


def product_pixels(reference: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    coverage = product_coverage(reference, crop)
    assert coverage.dtype == np.float32 and set(np.unique(coverage)) <= {0, 1}
    return coverage > 0


def _whole(image: np.ndarray) -> tuple[int, int, int, int]:
    return (0, 0, *image.shape[:2])  # type: ignore[return-value]


def _distance(size: int, center: tuple[float, float] | None = None) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5
    center_y, center_x = center or (size / 2, size / 2)
    return np.hypot(y - center_y, x - center_x)


def _disc(size: int = 80, hole: float = 0.0, label: tuple[int, int, int] | None = None) -> np.ndarray:
    """A red disc that touches the picture's sides, with a white hole or a light label in its middle."""
    image = np.full((size, size, 3), 255, np.uint8)
    image[_distance(size) <= size / 2] = RED
    image[_distance(size) <= hole * size / 2] = label or (255, 255, 255)
    return image


def test_background_is_white_from_the_border_and_in_holes() -> None:
    disc = _distance(80) <= 40
    np.testing.assert_array_equal(product_pixels(_disc(), _whole(_disc())), disc)
    holed = _disc(hole=0.4)
    np.testing.assert_array_equal(product_pixels(holed, _whole(holed)), disc & (_distance(80) > 16))


@pytest.mark.parametrize("label", [(250, 250, 248), (255, 255, 244)], ids=["off-white", "cream"])
def test_the_products_own_white_is_product(label: tuple[int, int, int]) -> None:
    labelled = _disc(hole=0.4, label=label)
    np.testing.assert_array_equal(product_pixels(labelled, _whole(labelled)), _distance(80) <= 40)


def test_a_glint_is_no_hole() -> None:
    glinting = _disc()
    glinting[30:32, 30:34] = 255
    assert product_pixels(glinting, _whole(glinting))[30:32, 30:34].all()


def test_any_number_of_specks() -> None:
    """Half of a chessboard's fields are white parts of their own: a labelling one by one would take minutes."""
    image = np.full((512, 512, 3), 60, np.uint8)
    image[2:-2:2, 2:-2:2] = 255
    assert product_pixels(image, _whole(image)).all()
    image[1:41, 1:41] = 255
    found = product_pixels(image, _whole(image))
    assert not found[1:41, 1:41].any() and found[42:, 42:].all()


def test_white_turns_corners_but_does_not_jump() -> None:
    """A spiral of background is background to its end; what a wall shuts off is judged on its own."""
    image = np.full((41, 41, 3), 60, np.uint8)
    for start in (0, 4, 8, 12):
        image[start, start : 41 - start] = image[start : 41 - start, 40 - start] = 250
        image[40 - start, start : 41 - start] = image[start + 4 : 41 - start, start] = 250
        image[start + 4, start : start + 5] = 250
    found = product_pixels(image, _whole(image))
    np.testing.assert_array_equal(found, (image < 245).all(axis=-1))
    image[2, :] = image[:, 38] = 60
    image[16, 12:17] = 60
    assert product_pixels(image, _whole(image))[16, 14]


def test_a_stripe_to_the_edge_is_product_and_a_notch_is_not() -> None:
    """A band as narrow as a stripe does not part the product; what is wider stays background."""
    disc = _distance(200) <= 100
    for width, bridged in ((7, True), (20, False)):
        striped = _disc(200)
        striped[100 : 100 + width] = 250
        found = product_pixels(striped, _whole(striped))
        expected = disc.copy()
        expected[100 : 100 + width] &= bridged
        # Near the edge the brush does not get into the disc's own corner with the stripe.
        assert (found != expected).mean() < 0.002, width
        assert found[100 : 100 + width, 20:180].all() == bridged
    np.testing.assert_array_equal(product_pixels(_disc(200), _whole(_disc(200))), disc)


def test_of_soft_alpha_a_share_is_covered() -> None:
    image = np.zeros((20, 30, 4), np.uint8)
    image[:, :, 3] = np.linspace(0, 255, 30).astype(np.uint8)
    found = product_coverage(image, _whole(image))
    assert (found[:, image[0, :, 3] < 10] == 0).all()
    np.testing.assert_allclose(found[:, 5:], image[:, 5:, 3] / 255, rtol=1e-6)
    mask = np.ones((20, 30), np.uint8)
    outline = outline_in_box(image, _whole(image), (0, 0, 20, 30), np.zeros((20, 30, 3), np.uint8), mask, mask > 0)
    assert outline is not None
    np.testing.assert_allclose(outline.coverage, found, atol=1 / 255)


def test_of_a_cut_out_alpha_decides() -> None:
    image = np.full((20, 30, 4), 255, np.uint8)
    image[..., 3] = 0
    image[5:15, 5:25, 3] = 255
    found = product_pixels(image, _whole(image))
    assert found[5:15, 5:25].all() and found.sum() == 200
    assert product_pixels(image, (5, 5, 15, 25)).all(), "of the whole picture, not of the part"
    opaque = image.copy()
    opaque[..., 3] = 255
    assert not product_pixels(opaque, _whole(opaque)).any(), "nothing is transparent: white counts"


def test_a_large_reference_is_reduced() -> None:
    large = _disc(3 * MOST_SIDE - 7)
    found = product_pixels(large, _whole(large))
    assert found.shape == (MOST_SIDE - 2, MOST_SIDE - 2)
    assert found.mean() == pytest.approx(np.pi / 4, abs=0.01)


def test_boxes() -> None:
    mask = np.zeros((50, 60), np.uint8)
    assert not is_box(mask)
    mask[5:45, 10:50] = 1
    assert is_box(mask)
    corner = int(np.sqrt((1 - BOX_FILL) * 1600)) - 1
    mask[5 : 5 + corner, 10 : 10 + corner] = 0
    assert is_box(mask), "drawn by hand"
    mask[5 : 5 + 2 * corner, 10 : 10 + 2 * corner] = 0
    assert not is_box(mask)
    assert not is_box(_distance(50) < 20)


def test_a_hole_in_a_slope_continues_it() -> None:
    """A linear function solves Laplace's equation, and the solution with given values round the hole is unique."""
    y, x = np.mgrid[:61, :48]
    image = np.stack([2 * x + 40, 3 * y + 10, 250 - y - 2 * x], axis=-1).astype(np.uint8)
    hole = np.zeros((61, 48), bool)
    hole[13:50, 9:40] = True
    shown = np.where(hole[..., None], np.random.default_rng(0).integers(0, 256, image.shape), image).astype(np.uint8)
    filled = fill_hole(shown, hole)
    assert np.abs(filled.astype(int) - image).max() <= 1
    np.testing.assert_array_equal(filled[~hole], image[~hole])


def test_a_filled_hole_lies_between_what_is_around_it() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 200
    hole = np.zeros((40, 40), bool)
    hole[10:, 10:30] = True
    filled = fill_hole(image, hole)
    inside = filled[10:, 10:30, 0].astype(int)
    assert (np.diff(inside, axis=1) >= 0).all() and inside.min() >= 0 and inside.max() <= 200
    assert inside[-1, 0] < 60 and inside[-1, -1] > 140, "also where the hole ends with the image"
    assert (fill_hole(image, np.ones((40, 40), bool)) == 128).all()
    np.testing.assert_array_equal(fill_hole(image, np.zeros((40, 40), bool)), image)


def _box() -> tuple[np.ndarray, tuple[int, int, int, int], np.ndarray]:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:50, 20:44] = 1
    scene = np.full((64, 64, 3), (90, 120, 200), np.uint8)
    scene[mask > 0] = 0
    return mask, (10, 20, 50, 44), scene


def test_the_outline_is_stretched_into_the_box() -> None:
    mask, place, scene = _box()
    outline = outline_in_box(_disc(), _whole(_disc()), place, scene, mask, mask > 0)
    assert outline is not None
    y, x = np.mgrid[:64, :64] + 0.5
    ellipse = np.hypot((y - 30) / 20, (x - 32) / 12)
    assert (outline.coverage[ellipse < 0.9] == 1).all() and (outline.coverage[ellipse > 1.12] == 0).all()
    assert outline.coverage.sum() == pytest.approx(np.pi * 20 * 12, rel=0.01)
    np.testing.assert_array_equal(outline.mask, outline.coverage >= COVERED)
    assert outline.mask.dtype == np.uint8 and not outline.mask[mask == 0].any()
    assert (outline.surroundings == (90, 120, 200)).all(), "what was in the box is gone"


@pytest.mark.parametrize("kind", ["a scene", "a filled picture", "white on white"])
def test_where_no_outline_is_to_be_told(kind: str) -> None:
    mask, place, scene = _box()
    reference = _disc()
    if kind == "a scene":
        reference = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    elif kind == "a filled picture":
        reference[:] = RED
    else:
        reference = np.full((80, 80, 3), 255, np.uint8)
        reference[::20] = 200
    assert outline_in_box(reference, _whole(reference), place, scene, mask, mask > 0) is None


def test_the_product_is_put_before_its_surroundings() -> None:
    coverage = np.array([[0, 0.25], [0.5, 1]], np.float32)
    outline = Outline(coverage, np.full((2, 2, 3), 51, np.uint8))
    composed = outline.compose(np.ones((2, 2, 3), np.float32))
    np.testing.assert_allclose(composed[..., 0], [[0.2, 0.4], [0.6, 1]], rtol=1e-6)
    assert composed.dtype == np.float32
    levels = outline.compose(np.full((2, 2, 3), 255, np.uint8))
    assert levels.dtype == np.uint8 and levels[..., 0].tolist() == [[51, 102], [153, 255]]
    assert outline.mask.tolist() == [[0, 0], [1, 1]]
