import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.data import hints, masks

SIZE = (40, 48)
_stitch_on_device = jax.jit(hints.stitch_jax, static_argnames=("size", "fit", "trim"))


def _reference(height=30, width=36, box=(4, 9, 25, 20), seed=0):
    """Noise smoothed a little, on white: the product fills ``box``."""
    reference = np.full((height, width, 3), 255, np.uint8)
    y0, x0, y1, x1 = box
    reference[y0:y1, x0:x1] = np.random.default_rng(seed).integers(0, 230, (y1 - y0, x1 - x0, 3))
    return reference


def test_trim_bounds_finds_the_product_on_white():
    reference = _reference()
    assert hints.trim_bounds(reference) == (4, 9, 25, 20)
    reference[0, 0] = hints.WHITE_TOLERANCE  # ringing near white is still white
    assert hints.trim_bounds(reference) == (4, 9, 25, 20)
    reference[1, 2, 1] = hints.WHITE_TOLERANCE - 1
    assert hints.trim_bounds(reference) == (1, 2, 25, 20)
    assert tuple(np.asarray(hints.trim_bounds_jax(jnp.asarray(reference)))) == (1, 2, 25, 20)


def test_trim_bounds_of_an_all_white_reference_is_the_whole_image():
    white = np.full((7, 5, 3), 255, np.uint8)
    assert hints.trim_bounds(white) == (0, 0, 7, 5)
    assert tuple(np.asarray(hints.trim_bounds_jax(jnp.asarray(white)))) == (0, 0, 7, 5)


def test_alpha_decides_where_it_is_in_use():
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[2:5, 3:7, 3] = 255  # a white product on transparency
    assert hints.trim_bounds(rgba) == (2, 3, 5, 7)
    opaque = np.dstack([_reference(), np.full((30, 36), 255, np.uint8)])
    assert hints.trim_bounds(opaque) == (4, 9, 25, 20)
    rgba[..., :3] = 0  # black under transparency must not reach the hint
    hint = hints.stitch(rgba, (0, 0, 8, 8), (8, 8), trim=False)
    assert (hint[0, 0] == 255).all() and (hint[3, 4] == 0).all()


def test_contain_keeps_the_aspect_and_centres():
    assert hints.placement((0, 0, 10, 20), (0, 0, 40, 40)) == (10, 0, 30, 40)
    assert hints.placement((0, 0, 20, 10), (5, 10, 45, 50)) == (5, 20, 45, 40)
    assert hints.placement((0, 0, 20, 10), (5, 10, 45, 50), "stretch") == (5, 10, 45, 50)
    assert hints.placement((0, 0, 1, 100), (0, 0, 9, 9)) == (4, 0, 5, 9)  # never less than a pixel
    with pytest.raises(ValueError, match="fit must be one of contain, stretch"):
        hints.placement((0, 0, 1, 1), (0, 0, 9, 9), "cover")


def test_placement_is_the_same_on_the_device():
    random = np.random.default_rng(1)
    starts = random.integers(0, 20, (50, 2, 2))
    boxes = np.concatenate([starts, starts + random.integers(1, 30, (50, 2, 2))], axis=-1)
    on_device = np.asarray(jax.vmap(hints.placement_jax)(boxes[:, 0], boxes[:, 1]))
    for (crop, rectangle), found in zip(boxes, on_device, strict=True):
        assert tuple(found) == hints.placement(tuple(map(int, crop)), tuple(map(int, rectangle)))


@pytest.mark.parametrize("fit", ["contain", "stretch"])
@pytest.mark.parametrize("trim", [True, False])
def test_host_and_device_agree(fit, trim):
    for seed, rectangle in enumerate([(2, 3, 38, 45), (10, 20, 17, 44), (5, 5, 30, 12)]):
        reference = _reference(seed=seed)
        host = hints.stitch(reference, rectangle, SIZE, fit, trim)
        device = np.asarray(_stitch_on_device(reference, jnp.array(rectangle), size=SIZE, fit=fit, trim=trim))
        difference = np.abs(host - device)
        assert difference.mean() < 0.6 and difference.max() <= 2  # Pillow rounds after each direction
        y0, x0, y1, x1 = hints.placement(hints.trim_bounds(reference), rectangle, fit) if trim else rectangle
        outside = np.ones(SIZE, bool)
        outside[y0:y1, x0:x1] = False
        assert not host[outside].any() and not device[outside].any()
        if trim:
            assert host[y0:y1, x0:x1].any(axis=-1).mean() > 0.98


def test_stitch_at_scale_one_copies_the_trimmed_product():
    reference = _reference()
    hint = hints.stitch(reference, (6, 7, 27, 18), SIZE)
    np.testing.assert_array_equal(hint[6:27, 7:18], reference[4:25, 9:20])
    device = np.asarray(_stitch_on_device(reference, jnp.array((6, 7, 27, 18)), size=SIZE))
    np.testing.assert_allclose(device, hint, atol=1e-3)


def test_stitch_takes_the_masks_largest_rectangle():
    mask = np.zeros(SIZE, np.uint8)
    mask[5:30, 8:40] = 1
    mask[30:38, 10:12] = 1
    reference = _reference()
    rectangle = masks.largest_rectangle(mask)
    assert rectangle == (5, 8, 30, 40)
    np.testing.assert_array_equal(hints.stitch(reference, mask, SIZE), hints.stitch(reference, rectangle, SIZE))
    around = hints.stitch(reference, mask, SIZE, region="bounding_box")
    np.testing.assert_array_equal(around, hints.stitch(reference, (5, 8, 38, 40), SIZE))
    with pytest.raises(ValueError, match="region must be one of"):
        hints.stitch(reference, mask, SIZE, region="outside")


@pytest.mark.parametrize("region", ["largest_rectangle", "bounding_box"])
def test_host_and_device_take_the_same_box(region):
    mask = np.zeros(SIZE, np.uint8)
    mask[5:30, 8:40] = 1
    mask[30:38, 10:12] = 1
    assert tuple(hints.hint_box_jax(jnp.array(mask), region)) == hints.hint_box(mask, region)


def test_an_empty_rectangle_gives_zeros_on_the_device_and_an_error_on_the_host():
    reference = _reference()
    assert not np.asarray(_stitch_on_device(reference, jnp.zeros(4, jnp.int32), size=SIZE)).any()
    with pytest.raises(ValueError, match="mask is empty"):
        hints.stitch(reference, np.zeros(SIZE), SIZE)
    with pytest.raises(ValueError, match="outside"):
        hints.stitch(reference, (0, 0, 41, 10), SIZE)
    with pytest.raises(ValueError, match="the hint canvas"):
        hints.stitch(reference, np.ones((4, 4)), SIZE)
