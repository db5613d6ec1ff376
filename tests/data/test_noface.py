"""The rule that takes faces out of photos."""

from __future__ import annotations

import numpy as np

from dtc_jax.data.builders.noface import GREY, MARGIN, Cut, remove_face
from dtc_jax.data.builders.source import Skipped
from tests.data.files import parse_map, photo

SCENE = photo(0, 100, 60)


def _mask(ids: np.ndarray) -> np.ndarray:
    return (ids == 5) * np.uint8(255)


def test_everything_is_cut_below_the_face_and_its_margin() -> None:
    ids = parse_map(face=(4, 20))
    cut = remove_face(SCENE, ids, _mask(ids))
    assert isinstance(cut, Cut) and cut.top == 20 + round(MARGIN * 100) == 22
    np.testing.assert_array_equal(cut.scene, SCENE[22:])
    np.testing.assert_array_equal(cut.mask, _mask(ids)[22:])


def test_a_speck_does_not_move_the_cut_and_is_blanked() -> None:
    ids = parse_map()
    ids[90, 30] = 13
    cut = remove_face(np.full_like(SCENE, 200), ids, _mask(ids))
    assert isinstance(cut, Cut) and cut.top == 22
    grey = (cut.scene == GREY).all(axis=-1)
    assert grey[90 - 22, 30] and grey[89 - 22, 29] and grey.sum() == 9


def test_glasses_below_count_as_face() -> None:
    ids = parse_map(face=(4, 18))
    ids[18:21, 22:38] = 4
    cut = remove_face(SCENE, ids, _mask(ids))
    assert isinstance(cut, Cut) and cut.top == 23


def test_no_head_needs_no_cut_and_a_head_without_a_face_is_skipped() -> None:
    ids = parse_map()
    ids[np.isin(ids, (2, 13))] = 0
    cut = remove_face(SCENE, ids, _mask(ids))
    assert isinstance(cut, Cut) and cut.top == 0
    ids[2:20, 18:42] = 2
    assert isinstance(remove_face(SCENE, ids, _mask(ids)), Skipped)


def test_too_little_of_the_garment_is_skipped() -> None:
    ids = parse_map()
    ids[26:50, 22:24] = 13  # the face hangs over most of the garment
    assert remove_face(SCENE, ids, _mask(parse_map())) == Skipped("noface: too little of the garment below the face")
