"""Contact sheets put every picture where its row and column are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dtc_jax.data.sheets import contact_sheet


def _plain(color: tuple[int, int, int], height: int = 10, width: int = 12) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def _find(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Top, left and number of the pixels of a colour."""
    rows, columns = np.nonzero((np.array(sheet) == color).all(axis=-1))
    return int(rows.min()), int(columns.min()), len(rows)


def test_grid_order_and_scale() -> None:
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    sheet = contact_sheet([[_plain(red), _plain(green)], [_plain(blue)]], ["left", "right"], 2, ["first", "second"])
    places = [_find(sheet, color) for color in (red, green, blue)]
    assert [count for *_, count in places] == [480] * 3, "each picture whole and enlarged four times in area"
    assert places[0][0] == places[1][0] < places[2][0] and places[0][1] == places[2][1] < places[1][1]
    assert places[0][0] > 8, "room for the labels"
    assert (np.array(sheet.crop((0, 0, sheet.width, places[0][0]))) < 100).any(), "labels are drawn"


def test_masks_floats_and_images_mix() -> None:
    mask = np.zeros((4, 4, 1), np.uint8)
    mask[:2] = 1
    sheet = contact_sheet([[mask, np.full((4, 4, 3), 0.5), Image.new("L", (4, 4), 7)]])
    pixels = np.array(sheet)
    assert (pixels == 0).all(axis=-1).sum() == 8
    assert (pixels == 128).all(axis=-1).sum() == 16
    assert (pixels == 7).all(axis=-1).sum() == 16


def test_wrong_labels() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([[]])
    with pytest.raises(ValueError, match="2 column labels for 1"):
        contact_sheet([[_plain((0, 0, 0))]], ["a", "b"])
    with pytest.raises(ValueError, match="2 row labels for 1"):
        contact_sheet([[_plain((0, 0, 0))]], row_labels=["a", "b"])
