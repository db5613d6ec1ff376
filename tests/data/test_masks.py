import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.data import masks

SHAPE = (9, 11)
_on_device = jax.jit(jax.vmap(masks.largest_rectangle_jax))


def _brute_force_area(mask):
    best = 0
    for y0 in range(mask.shape[0]):
        for y1 in range(y0 + 1, mask.shape[0] + 1):
            for x0 in range(mask.shape[1]):
                for x1 in range(x0 + 1, mask.shape[1] + 1):
                    area = (y1 - y0) * (x1 - x0)
                    if area > best and mask[y0:y1, x0:x1].all():
                        best = area
    return best


def _special_masks():
    full = np.ones(SHAPE, bool)
    pixel, corner, row, column, frame, parts = (np.zeros(SHAPE, bool) for _ in range(6))
    pixel[4, 6] = corner[8, 10] = True
    row[3] = True
    column[:, 7] = True
    frame[:] = True
    frame[1:-1, 1:-1] = False
    parts[0:3, 0:4] = parts[5:9, 6:11] = parts[7:9, 0:2] = True
    stairs = np.tri(*SHAPE, dtype=bool)
    return [full, pixel, corner, row, column, frame, parts, stairs]


def _random_masks(count=40):
    random = np.random.default_rng(0)
    return [random.random(SHAPE) < share for share in np.linspace(0.1, 0.97, count)]


@pytest.mark.parametrize("family", [_special_masks, _random_masks])
def test_largest_rectangle_matches_brute_force_on_host_and_device(family):
    all_masks = [mask for mask in family() if mask.any()]
    device = np.asarray(_on_device(np.stack(all_masks)))
    for mask, on_device in zip(all_masks, device, strict=True):
        y0, x0, y1, x1 = masks.largest_rectangle(mask)
        assert mask[y0:y1, x0:x1].all()
        assert (y1 - y0) * (x1 - x0) == _brute_force_area(mask)
        assert tuple(on_device) == (y0, x0, y1, x1)


def test_ties_go_to_the_rectangle_that_ends_highest_then_to_the_left():
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 7:10] = mask[2:4, 0:3] = 1
    assert masks.largest_rectangle(mask) == (1, 7, 3, 10)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 7:10] = mask[1:3, 0:3] = 1
    assert masks.largest_rectangle(mask) == (1, 0, 3, 3)


def test_empty_mask_is_an_error_on_the_host_and_zeros_on_the_device():
    empty = np.zeros(SHAPE, np.uint8)
    with pytest.raises(ValueError, match="mask is empty"):
        masks.largest_rectangle(empty)
    with pytest.raises(ValueError, match="mask is empty"):
        masks.bounding_box(empty)
    assert np.asarray(_on_device(empty[None])).tolist() == [[0, 0, 0, 0]]
    assert np.asarray(masks.bounding_box_jax(jnp.asarray(empty))).tolist() == [0, 0, 0, 0]


def test_largest_rectangle_of_a_large_mask_is_fast():
    y, x = np.mgrid[:512, :512]
    mask = (x - 250) ** 2 + (y - 260) ** 2 < 200**2
    times = []
    for _ in range(5):
        start = time.process_time()
        box = masks.largest_rectangle(mask)
        times.append(time.process_time() - start)
    side = 2 * 200 / np.sqrt(2)
    assert abs((box[2] - box[0]) - side) < 4 and abs((box[3] - box[1]) - side) < 4
    assert min(times) < 0.1  # about 8 ms on an idle core; a loop over pixels in Python takes seconds


def test_bounding_box_and_box_mask_are_inverse():
    for box in [(0, 0, 9, 11), (2, 3, 5, 4), (8, 10, 9, 11)]:
        mask = masks.box_mask(box, *SHAPE)
        assert mask.dtype == np.uint8 and mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert masks.bounding_box(mask) == box
        assert tuple(np.asarray(masks.bounding_box_jax(jnp.asarray(mask)))) == box
        np.testing.assert_array_equal(np.asarray(masks.box_mask_jax(jnp.array(box), *SHAPE)), mask)


def test_box_mask_clips_to_the_image_and_rejects_a_box_outside_it():
    assert masks.bounding_box(masks.box_mask((-3, -2, 4, 40), *SHAPE)) == (0, 0, 4, 11)
    for outside in [(20, 0, 30, 5), (-5, 0, 0, 5), (4, 4, 4, 8)]:
        with pytest.raises(ValueError, match="no pixel inside"):
            masks.box_mask(outside, *SHAPE)


def test_binarize_takes_128_as_inside():
    assert masks.binarize(np.array([0, 127, 128, 255], np.uint8)).tolist() == [0, 0, 1, 1]


def test_resize_mask_nearest_takes_the_first_pixel_of_each_block():
    mask = np.arange(32).reshape(1, 4, 8, 1)
    assert masks.resize_mask_nearest(mask, 4)[0, :, :, 0].tolist() == [[0, 4]]
    with pytest.raises(ValueError, match="does not divide"):
        masks.resize_mask_nearest(mask, 3)
