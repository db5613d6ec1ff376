"""What the model is given: the batch's shapes and types, the hint in the mask, the framed reference."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import BoxOutline
from dtc_jax.data.hints import stitch
from dtc_jax.data.images import InputError, read_photo
from dtc_jax.data.outline import is_box
from dtc_jax.data.references import frame_reference
from dtc_jax.inference.prepare import PreparedPhoto, prepare, read_case

MODEL = presets.test()


def _reference(height: int, width: int, margin: int) -> np.ndarray:
    image = np.full((height + 2 * margin, width + 2 * margin, 3), 255, np.uint8)
    image[margin : margin + height, margin : margin + width] = (200, 30, 60)
    return image


def test_batch_is_what_normalize_batch_takes() -> None:
    scene = np.random.default_rng(0).integers(0, 256, (41, 53, 3), np.uint8)
    mask = np.zeros((41, 53), np.uint8)
    mask[10:30, 20:33] = 1
    reference = _reference(20, 10, 3)
    case = prepare(scene, mask, reference, MODEL)
    shapes = {name: (value.shape, value.dtype.name) for name, value in case.batch.items()}
    assert shapes == {
        "scene": ((16, 16, 3), "uint8"),
        "mask": ((16, 16, 1), "uint8"),
        "reference": ((16, 16, 3), "uint8"),
        "hint": ((16, 16, 3), "uint8"),
    }
    assert not case.batch["hint"][case.batch["mask"][..., 0] == 0].any(), "the hint lies in the mask"
    np.testing.assert_array_equal(case.batch["hint"], stitch(reference, case.batch["mask"][..., 0], (16, 16)))
    assert case.batch["hint"].any()


def _oval_in_a_box() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A blue scene, a box in it, where something black is, and a red oval on white."""
    scene = np.full((48, 64, 3), (60, 90, 200), np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[8:40, 20:44] = 1
    scene[mask == 1] = 0
    y, x = np.mgrid[:60, :40] + 0.5
    reference = np.full((60, 40, 3), 255, np.uint8)
    reference[((y - 30) / 28) ** 2 + ((x - 20) / 18) ** 2 < 1] = (200, 30, 60)
    return scene, mask, reference


def test_the_reference_may_give_the_outline_in_a_box() -> None:
    scene, mask, reference = _oval_in_a_box()
    plain = prepare(scene, mask, reference, MODEL)
    case = prepare(scene, mask, reference, MODEL, box_outline="reference")
    assert plain.outline is None and case.outline is not None
    for name in ("hint", "reference"):
        np.testing.assert_array_equal(case.batch[name], plain.batch[name], err_msg=name)
    inside = plain.batch["mask"] > 0
    share = case.batch["mask"][inside].mean()
    assert 0.6 < share < 0.9 and not case.batch["mask"][~inside].any(), "an oval in its box"
    middle = tuple(int(place.mean()) for place in np.nonzero(inside[..., 0]))
    assert case.batch["mask"][middle] == 1
    assert (case.batch["scene"] == (60, 90, 200)).all(), "what was in the box is not shown"
    result = case.put_back(np.zeros((16, 16, 3), np.float32))
    np.testing.assert_array_equal(result[mask == 0], scene[mask == 0])
    assert (result[24, 32] == 0).all() and (np.abs(result[8, 20].astype(int) - (60, 90, 200)) <= 8).all()
    whole = PreparedPhoto(read_photo(scene), (case,)).put_back([np.zeros((16, 16, 3), np.float32)], feather=0)
    np.testing.assert_array_equal(whole, result)


@pytest.mark.parametrize("box", [(8, 0, 40, 64), (0, 0, 48, 64), (0, 3, 47, 64)], ids=["wide", "all", "nearly all"])
@pytest.mark.parametrize("box_outline", get_args(BoxOutline))
def test_what_is_inside_the_mask_does_not_count(box: tuple[int, int, int, int], box_outline: BoxOutline) -> None:
    """Nor beyond the photo, where the window repeats its edge, also where that is inside the mask."""
    scene, _, reference = _oval_in_a_box()
    y0, x0, y1, x1 = box
    scene[:] = (60, 90, 200)
    mask = np.zeros((48, 64), np.uint8)
    mask[y0:y1, x0:x1] = 1
    other = scene.copy()
    other[mask == 1] = (0, 255, 0)
    first, second = (prepare(image, mask, reference, MODEL, box_outline=box_outline) for image in (scene, other))
    assert first.window.side >= 64 > 48, "the window reaches beyond the photo"
    shown = [case.batch["scene"] * (1 - case.batch["mask"]) for case in (first, second)]
    np.testing.assert_array_equal(*shown)
    expected = (128,) * 3 if mask.all() else (60, 90, 200)
    assert (shown[0][first.batch["mask"][..., 0] == 0] == expected).all()
    if box_outline == "reference":
        assert first.outline is not None and second.outline is not None
        np.testing.assert_array_equal(second.outline.surroundings, first.outline.surroundings)


def test_a_thin_drawn_mask_is_no_box() -> None:
    """Though at the model's size, where it is one or two pixels wide, it fills its bounding box."""
    scene, reference = np.zeros((600, 600, 3), np.uint8), _oval_in_a_box()[2]
    y, x = np.mgrid[:600, :600] + 0.5
    mask = (((y - 300) / 250) ** 2 + ((x - 300) / 8) ** 2 < 1).astype(np.uint8)
    small = prepare(scene, mask, reference, MODEL).batch["mask"][..., 0]
    assert is_box(small) and not is_box(mask), "the case that this is about"
    assert prepare(scene, mask, reference, MODEL, box_outline="reference").outline is None


def test_drawn_masks_and_prompts_have_their_own_outline() -> None:
    scene, mask, reference = _oval_in_a_box()
    mask[8:20, 20:30] = 0
    case = prepare(scene, mask, reference, MODEL, box_outline="reference")
    plain = prepare(scene, mask, reference, MODEL)
    assert case.outline is None
    for name, array in plain.batch.items():
        np.testing.assert_array_equal(case.batch[name], array, err_msg=name)
    assert prepare(scene, mask, None, MODEL, box_outline="reference").outline is None


def test_a_reference_that_fits_is_only_padded() -> None:
    square = _reference(12, 12, 2)
    np.testing.assert_array_equal(frame_reference(square, 16), square)
    tall = np.zeros((16, 4, 3), np.uint8)
    framed = frame_reference(tall, 16)
    assert not framed[:, 6:10].any() and (framed[:, :6] == 255).all() and (framed[:, 10:] == 255).all()


def test_a_small_product_on_white_is_brought_closer() -> None:
    framed = frame_reference(_reference(40, 20, 100), 64)
    rows = np.flatnonzero((framed < 200).any(axis=(1, 2)))
    assert 0.75 < len(rows) / 64 < 0.95
    assert abs(rows.mean() - 31.5) <= 1.5, "centred"
    far = frame_reference(_reference(40, 20, 100), 64, trim=False)
    assert (far < 200).any(axis=(1, 2)).sum() < 64 * 0.25


def test_a_product_off_centre_stays_whole() -> None:
    image = np.full((200, 300, 3), 255, np.uint8)
    image[:30, 270:] = 10
    framed = frame_reference(image, 64)
    assert (framed < 100).any(axis=-1).sum() > (0.75 * 64) ** 2
    assert (framed[0] > 200).all() and (framed[:, -1] > 200).all()


def test_transparent_references_go_on_white_and_white_products_are_kept() -> None:
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[5:15, 5:15] = 255
    framed = frame_reference(rgba, 16)
    assert (framed == 255).all()
    mask = np.ones((16, 16), np.uint8)
    hint = prepare(np.zeros((16, 16, 3), np.uint8), mask, rgba, MODEL, context=0).batch["hint"]
    assert (hint == 255).all(), "alpha decides what is product"


def test_read_case_wants_mask_or_box() -> None:
    scene, reference = np.zeros((8, 8, 3), np.uint8), _reference(4, 4, 1)
    with pytest.raises(InputError, match="box_outline must be model or reference, not 'both'"):
        read_case(scene, None, reference, MODEL, box=(0, 0, 1, 1), box_outline="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one of the two"):
        read_case(scene, None, reference, MODEL)
    with pytest.raises(InputError, match="one of the two"):
        read_case(scene, np.ones((8, 8), bool), reference, MODEL, box=(0, 0, 1, 1))
    with pytest.raises(InputError, match="context"):
        read_case(scene, None, reference, MODEL, box=(0, 0, 1, 1), context=-1)
