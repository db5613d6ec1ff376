"""From a record to a sample: masks, hints, mirrors and turns."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dtc_jax.bench.synthetic import synthetic_sample
from dtc_jax.config import HintConfig
from dtc_jax.data.hints import stitch, stitched_scene, trim_bounds
from dtc_jax.data.masks import bounding_box, largest_rectangle
from dtc_jax.data.order import Augmentation
from dtc_jax.data.records import Sample, encode
from dtc_jax.data.references import frame_reference
from dtc_jax.data.transform import extra_arrays, make_sample
from dtc_jax.data.turning import turn_reference
from dtc_jax.inference.prepare import prepare
from tests.data.prepared import MODEL

PLAIN = Augmentation(box=False, flip=False, angle=0.0)


def record(seed: int = 0, size: int = 16) -> Sample:
    """A sample with a random mask, so that its rectangle is worth a search, and a reference that is no mirror image."""
    random = np.random.default_rng(seed)
    mask = (random.random((size, size)) < 0.75).astype(np.uint8)
    mask[:2], mask[:, :3] = 0, 0
    sample = synthetic_sample(seed, size)
    return sample._replace(mask=mask, rectangle=largest_rectangle(mask), box=bounding_box(mask))


def made(sample: Sample, size: int = 16, hint: dict[str, Any] | None = None, **drawn: Any) -> dict[str, np.ndarray]:
    model = dataclasses.replace(MODEL, image_size=size, hint=dataclasses.replace(MODEL.hint, **(hint or {})))
    return make_sample(sample, PLAIN._replace(**drawn), model)


def largest_area(mask: np.ndarray) -> int:
    """By trying every rectangle."""
    total = np.pad(mask.astype(int), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    rows, columns = mask.shape
    best = 0
    for y0 in range(rows):
        for y1 in range(y0 + 1, rows + 1):
            for x0 in range(columns):
                for x1 in range(x0 + 1, columns + 1):
                    area = (y1 - y0) * (x1 - x0)
                    inside = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
                    best = max(best, area if inside == area else 0)
    return best


def test_what_is_stored_is_what_is_learned() -> None:
    sample = record()
    result = made(sample)
    np.testing.assert_array_equal(result["scene"], sample.scene)
    np.testing.assert_array_equal(result["mask"][..., 0], sample.mask)
    np.testing.assert_array_equal(result["reference"], frame_reference(sample.reference, 16))
    # As in sampling: stitched into the mask's own box.
    np.testing.assert_array_equal(result["hint"], stitch(sample.reference, sample.mask, (16, 16)))
    shapes = {name: (values.shape, values.dtype) for name, values in result.items()}
    image = ((16, 16, 3), np.uint8)
    assert shapes == {"scene": image, "hint": image, "reference": image, "mask": ((16, 16, 1), np.uint8)}


@pytest.mark.parametrize("size", [16, 8])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [False, True])
def test_hint_fills_the_largest_rectangle(box: bool, flip: bool, size: int) -> None:
    for seed in range(4):
        # Black holes at random; a reference without white, stretched, covers exactly its rectangle.
        sample = record(seed)._replace(reference=np.full((9, 9, 3), 200, np.uint8))
        result = made(sample, size, {"fit": "stretch", "trim": False}, box=box, flip=flip)
        covered, mask = result["hint"].any(axis=-1), result["mask"][..., 0]
        assert covered.sum() == largest_area(mask)
        assert (mask[covered] == 1).all()
        y0, x0, y1, x1 = bounding_box(covered)
        assert covered[y0:y1, x0:x1].all()


def test_box_masks_are_the_bounding_box() -> None:
    sample = record()
    mask = made(sample, box=True)["mask"][..., 0]
    assert mask.sum() == (16 - 2) * (16 - 3) > sample.mask.sum()
    np.testing.assert_array_equal(mask[2:, 3:], 1)


def test_region_of_the_hint_can_be_the_bounding_box() -> None:
    sample = record()._replace(reference=np.full((9, 9, 3), 200, np.uint8))
    hint = made(sample, hint={"fit": "stretch", "trim": False, "region": "bounding_box"})["hint"]
    assert bounding_box(hint.any(axis=-1)) == sample.box
    assert isinstance(HintConfig().region, str)


@pytest.mark.parametrize("box", [False, True])
def test_scene_mask_and_reference_are_mirrored_together(box: bool) -> None:
    sample = record(2)
    plain, mirrored = made(sample, box=box), made(sample, box=box, flip=True)
    for name in ("scene", "mask"):
        assert not np.array_equal(mirrored[name], plain[name])
        np.testing.assert_array_equal(mirrored[name], plain[name][:, ::-1])
    turned = sample._replace(reference=np.ascontiguousarray(sample.reference[:, ::-1]))
    assert not np.array_equal(mirrored["reference"], plain["reference"])
    np.testing.assert_array_equal(mirrored["reference"], frame_reference(turned.reference, 16))
    # The mirrored product, in the mirrored place; centred, its odd pixel may be to either side.
    y0, x0, y1, x1 = sample.box if box else sample.rectangle
    expected = stitch(turned.reference, (y0, 16 - x1, y1, 16 - x0), (16, 16))
    np.testing.assert_array_equal(mirrored["hint"], expected)


def test_smaller_images_keep_the_mask_covered() -> None:
    sample = record()
    mask = np.zeros((16, 16), np.uint8)
    mask[5, 7] = 1
    thin = sample._replace(mask=mask, rectangle=(5, 7, 6, 8), box=(5, 7, 6, 8))
    small = made(thin, 8)
    assert np.argwhere(small["mask"][..., 0]).tolist() == [[2, 3]]
    assert bounding_box(small["hint"].any(axis=-1)) == (2, 3, 3, 4)
    blocks = sample.scene.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small["scene"], blocks, atol=0.51)


def test_more_than_the_schema_passes_unchanged() -> None:
    tokens = np.arange(6, dtype=np.float16).reshape(2, 3)
    assert extra_arrays(encode(record())) == {}
    extra = extra_arrays({**encode(record()), "tokens": tokens})
    assert extra.keys() == {"tokens"}
    np.testing.assert_array_equal(extra["tokens"], tokens)


# --------------------------------------------------------------------------------------------------------- turning


def product(height: int, width: int, size: int = 64) -> np.ndarray:
    """A dark rectangle on white, off the middle, with a red upper right corner."""
    image = np.full((size, size, 3), 255, np.uint8)
    image[4 : 4 + height, 2 : 2 + width] = 30
    image[4:14, 2 + width - 10 : 2 + width] = [200, 0, 0]
    return image


@pytest.mark.parametrize("degrees", [-10.0, -3.0, 5.0, 10.0, 45.0])
@pytest.mark.parametrize(("height", "width"), [(60, 30), (30, 60), (40, 40)])
def test_turning_cuts_nothing_off(height: int, width: int, degrees: float) -> None:
    image = product(height, width)
    turned = turn_reference(image, degrees)
    assert turned.shape[0] == turned.shape[1] and turned.dtype == np.uint8
    dark = (255.0 - turned).sum() / (255.0 - image).sum()
    assert dark == pytest.approx(1, abs=0.01)
    margin = max(image.shape) - max(height, width)
    box = bounding_box((turned < 128).any(axis=-1))
    assert turned.shape[0] - max(box[2] - box[0], box[3] - box[1]) == pytest.approx(margin, abs=2)
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        assert low + high == pytest.approx(turned.shape[0], abs=2)


def test_turning_is_counter_clockwise() -> None:
    turned = turn_reference(product(40, 40), 30.0).astype(int)
    red = np.argwhere(turned[..., 0] - turned[..., 1] > 100).mean(axis=0)
    middle = turned.shape[0] / 2
    # From the upper right corner, at 45 degrees, to 75: nearly straight up.
    assert red[0] < middle - 10 and 0 < red[1] - middle < 10


@pytest.mark.parametrize("degrees", [-45.0, -7.3, 2.0, 10.0])
@pytest.mark.parametrize("place", [(0, 0, 64, 64), (0, 30, 20, 64), (25, 11, 40, 52), (0, 0, 0, 0)])
def test_turning_leaves_out_white_alone(place: tuple[int, int, int, int], degrees: float) -> None:
    y0, x0, y1, x1 = place
    image = np.full((64, 64, 3), 255, np.uint8)
    # Almost white pixels, too: outside of what is trimmed, yet not white.
    image[y0:y1, x0:x1] = np.random.default_rng(0).integers(0, 256, (y1 - y0, x1 - x0, 3))
    image[y0 : y1 and y0 + 3, x0:x1] = 254
    turned = turn_reference(image, degrees)
    # All of it at once: OpenCV's own turn of the whole picture, about the same centres.
    top, left, bottom, right = trim_bounds(image)
    middle = (turned.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D(((left + right - 1) / 2, (top + bottom - 1) / 2), degrees, 1.0)
    matrix[:, 2] += middle - (left + right - 1) / 2, middle - (top + bottom - 1) / 2
    whole = cv2.warpAffine(image, matrix, turned.shape[:2], flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255))
    # Coordinates are rounded in float32: a level here and there.
    assert np.abs(turned.astype(int) - whole).max() <= 1
    assert (turned != whole).mean() < 0.005


@pytest.mark.parametrize("size", [16, 23, 50, 64, 97])
@pytest.mark.parametrize("place", [(0, 0, 64, 64), (0, 10, 50, 64), (20, 3, 64, 61), (0, 0, 0, 0)])
def test_framing_leaves_out_white_alone(place: tuple[int, int, int, int], size: int) -> None:
    y0, x0, y1, x1 = place
    image = np.full((64, 64, 3), 255, np.uint8)
    image[y0:y1, x0:x1] = np.random.default_rng(0).integers(0, 256, (y1 - y0, x1 - x0, 3))
    framed = frame_reference(image, size, trim=False)
    whole = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    # Pillow takes boxes in float32: a level here and there.
    assert np.abs(framed.astype(int) - whole).max() <= 1
    assert (framed != whole).mean() < 0.005


def test_no_turn_is_no_change() -> None:
    image = product(20, 20)
    assert turn_reference(image, 0.0) is image


def test_references_and_hints_are_turned_alike() -> None:
    sample = record()._replace(reference=product(50, 25))
    result, plain = made(sample, angle=8.0), made(sample)
    turned = turn_reference(sample.reference, 8.0)
    np.testing.assert_array_equal(result["reference"], frame_reference(turned, 16))
    np.testing.assert_array_equal(result["hint"], stitch(turned, sample.rectangle, (16, 16)))
    for name in ("scene", "mask"):
        np.testing.assert_array_equal(result[name], plain[name])


@pytest.mark.parametrize("kind", ["canny", "latent"])
def test_other_hints_are_made_of_the_canvas_as_in_sampling(kind: str) -> None:
    sample = record()
    result, canvas = made(sample, hint={"kind": kind}), made(sample)["hint"]
    if kind == "canny":
        expected = np.stack([cv2.Canny(canvas[..., channel].copy(), 30, 140) for channel in range(3)], axis=-1)
    else:
        expected = stitched_scene(canvas, sample.scene, sample.mask)
    assert expected.any() and not np.array_equal(expected, canvas)
    np.testing.assert_array_equal(result["hint"], expected)
    np.testing.assert_array_equal(result["reference"], made(sample)["reference"])
    # The whole scene is the window, so that sampling makes the same of it.
    model = dataclasses.replace(MODEL, image_size=16, hint=dataclasses.replace(MODEL.hint, kind=kind))
    sampled = prepare(sample.scene, sample.mask, sample.reference, model, context=100.0, keep_backdrop=True)
    assert sampled.window.side == 16
    np.testing.assert_array_equal(sampled.batch["hint"], expected)
