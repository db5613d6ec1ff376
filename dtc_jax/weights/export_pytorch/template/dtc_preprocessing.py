"""From a photo, a mask and a reference of any size to what the model takes, and back into the photo.

The model works at one size. The part of the photo round the mask is cut out (`crop_window`) and resized; the reference
is stitched into the mask's box on a black canvas (`stitch`: the hint) and framed in a white square (`frame_reference`);
the result is resized back and pasted inside the mask only (`put_back`): no pixel outside it changes.
Boxes are half-open: y0, x0, y1, x1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .dtc_backdrop import whiten_backdrop
from .dtc_images import on_white
from .dtc_metadata import NO_METADATA, Metadata
from .dtc_outline import Outline, fill_hole, is_box, outline_in_box
from .dtc_resize import edge_distance, resize_area, resize_cubic, resize_nearest

Box = tuple[int, int, int, int]

DEFAULT_CONTEXT = 0.65
"""The window's side over the mask's, less one."""

MIN_CONTEXT = 0.1
"""What is left of the context where the photo ends."""

MIN_SIDE = 16
"""The least side of a window in pixels."""

LEAST_FILL, FILL = 0.7, 0.85
"""A product that fills less of its white picture than the first is brought closer, until it fills the second."""

WHITE_TOLERANCE, OPAQUE_TOLERANCE = 245, 10
"""A pixel is white if all its channels are at least the first, transparent if its alpha is below the second."""


@dataclass(frozen=True)
class Window:
    """A square in the photo; it may reach beyond it."""

    top: int
    left: int
    side: int

    def overlap(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the photo that lie in the window."""
        rows = slice(max(self.top, 0), min(self.top + self.side, height))
        return rows, slice(max(self.left, 0), min(self.left + self.side, width))


@dataclass(frozen=True)
class Prepared:
    """uint8 arrays at the model's sizes, and what is needed to put the result back."""

    scene: np.ndarray
    mask: np.ndarray
    reference: np.ndarray
    hint: np.ndarray
    photo: np.ndarray
    photo_mask: np.ndarray
    window: Window
    outline: Outline | None = None
    metadata: Metadata = NO_METADATA


def prepare(
    photo, mask, reference, *, size, reference_size, fit, region, trim, context, box_outline="model"
) -> Prepared:
    """Cut the window, stitch the hint, frame the reference.

    Args:
        photo: uint8 RGB [h, w, 3]; mask: {0, 1} [h, w], 1 = fill; reference: uint8 RGB or RGBA.
        size, reference_size: Sides of the model's and of the image encoder's images.
        fit, region, trim: How the model was taught to place the hint; see `stitch`.
        context: See `crop_window`.
        box_outline: "reference" cuts a mask that is a box to the reference's outline; see `outline_in_box`.
    """
    if box_outline not in ("model", "reference"):
        raise ValueError(f"box_outline must be model or reference, not {box_outline!r}")
    cut_out = reference.shape[-1] == 4 and (reference[..., 3] < OPAQUE_TOLERANCE).any()
    if not cut_out:
        reference = whiten_backdrop(on_white(reference))
    window = crop_window(mask, context)
    scene = extract(photo, window, size)
    small_mask, hole = extract_mask(mask, window, size), extract_hole(mask, window, size)
    if (hole != small_mask).any():  # beyond the photo, where the old content would be repeated
        scene = np.where((hole > small_mask)[..., None], fill_hole(scene, hole > 0), scene)
    crop, place = hint_place(reference, small_mask, fit, region, trim)
    outline = None
    if box_outline == "reference" and is_box(mask):
        outline = outline_in_box(reference, crop, place, scene, small_mask, hole > 0)
    return Prepared(
        scene=scene if outline is None else outline.surroundings,
        mask=small_mask if outline is None else outline.mask,
        reference=frame_reference(reference, reference_size, trim),
        hint=stitch(reference, crop, place, size),
        photo=photo,
        photo_mask=mask,
        window=window,
        outline=outline,
    )


# ------------------------------------------------------------------------------------------------------- the window


def crop_window(mask: np.ndarray, context: float = DEFAULT_CONTEXT) -> Window:
    """A square window that holds the mask and some of its surroundings: its side is the mask's times 1 + context."""
    height, width = mask.shape
    y0, x0, y1, x1 = bounding_box(mask)
    box_side = max(y1 - y0, x1 - x0)
    wanted = max(math.ceil(box_side * (1 + context)), MIN_SIDE)
    least = math.ceil(box_side * (1 + min(context, MIN_CONTEXT)))
    side = min(wanted, max(min(height, width), least))
    return Window(_place(y0, y1, side, height), _place(x0, x1, side, width), side)


def _place(start: int, stop: int, side: int, length: int) -> int:
    if side >= length:
        return -((side - length) // 2)
    return min(max((start + stop - side) // 2, 0), length - side)


def extract(image: np.ndarray, window: Window, size: int) -> np.ndarray:
    """The window's content at the model's size; beyond the photo its edge is repeated."""
    return _resize(_padded(image, window, mode="edge"), size)


def extract_mask(mask: np.ndarray, window: Window, size: int) -> np.ndarray:
    """The mask {0, 1} in the window; a pixel that covers any of the mask is inside."""
    padded = _padded((mask != 0).astype(np.float32), window, mode="constant")
    if size >= window.side:
        return resize_nearest(padded, size).astype(np.uint8)
    return (resize_area(padded, size) > 1e-4).astype(np.uint8)


def extract_hole(mask: np.ndarray, window: Window, size: int) -> np.ndarray:
    """Where `extract` shows what is inside the mask {0, 1}: there, and beyond the photo where that is repeated."""
    repeated = _padded((mask != 0).astype(np.uint8), window, mode="edge")
    return extract_mask(repeated, Window(0, 0, window.side), size)


def put_back(prepared: Prepared, generated: np.ndarray, feather: int = 0) -> np.ndarray:
    """The photo with the generated window (float in [0, 1]) inside the mask; `feather` pixels inside it are blended."""
    photo, mask, window = prepared.photo, prepared.photo_mask, prepared.window
    if prepared.outline is not None:
        generated = prepared.outline.compose(generated)
    generated = np.rint(np.clip(generated, 0, 1) * 255).astype(np.uint8)
    rows, columns = window.overlap(*mask.shape)
    patch = _resize(generated, window.side)[
        rows.start - window.top : rows.stop - window.top, columns.start - window.left : columns.stop - window.left
    ]
    result = photo.copy()
    inside = mask[rows, columns] != 0
    target = result[rows, columns]
    if feather > 0:
        # The scene continues beyond the photo's border, so that the blend is along the mask's own edge only.
        distance = edge_distance(np.pad(mask != 0, feather, mode="edge"), feather)
        weight = np.clip(distance[feather:-feather, feather:-feather][rows, columns] / (feather + 1), 0, 1)[..., None]
        patch = np.rint(target + weight * (patch.astype(np.float32) - target)).astype(np.uint8)
    target[inside] = patch[inside]
    return result


def _padded(image: np.ndarray, window: Window, mode: str) -> np.ndarray:
    rows, columns = window.overlap(*image.shape[:2])
    widths = [
        (rows.start - window.top, window.top + window.side - rows.stop),
        (columns.start - window.left, window.left + window.side - columns.stop),
    ]
    return np.pad(image[rows, columns], widths + [(0, 0)] * (image.ndim - 2), mode=mode)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[0] == size:
        return image
    return resize_area(image, size) if size < image.shape[0] else resize_cubic(image, size)


# ---------------------------------------------------------------------------------------------------- the reference


def frame_reference(reference: np.ndarray, size: int, trim: bool = True) -> np.ndarray:
    """The reference as the encoder's square: padded with white, some of a wide white margin cut off first."""
    y0, x0, y1, x1 = trim_bounds(reference) if trim else (0, 0, *reference.shape[:2])
    image = on_white(reference)
    height, width = image.shape[:2]
    product, side = max(y1 - y0, x1 - x0), max(height, width)
    center_y, center_x = height / 2, width / 2
    if product < LEAST_FILL * side:
        side, center_y, center_x = math.ceil(product / FILL), (y0 + y1) / 2, (x0 + x1) / 2
    top, left = round(center_y - side / 2), round(center_x - side / 2)
    inner = image[max(top, 0) : top + side, max(left, 0) : left + side]
    square = np.full((side, side, 3), 255, np.uint8)
    before_y, before_x = max(-top, 0), max(-left, 0)
    square[before_y : before_y + inner.shape[0], before_x : before_x + inner.shape[1]] = inner
    if side == size:
        return square
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def trim_bounds(reference: np.ndarray) -> tuple[int, int, int, int]:
    """The box of what is neither white nor transparent; the whole image if nothing is left."""
    content = (reference[..., :3] < WHITE_TOLERANCE).any(axis=-1)
    if reference.shape[-1] == 4 and (reference[..., 3] < OPAQUE_TOLERANCE).any():
        content = reference[..., 3] >= OPAQUE_TOLERANCE
    return bounding_box(content) if content.any() else (0, 0, *content.shape)


# --------------------------------------------------------------------------------------------------------- the hint


def hint_place(reference: np.ndarray, mask: np.ndarray, fit: str, region: str, trim: bool) -> tuple[Box, Box]:
    """What of the reference the hint shows, and where in the mask.

    Args:
        reference: uint8 RGB or RGBA; mask: {0, 1} at the model's size.
        fit: "contain" keeps the aspect and centres, "stretch" fills the box.
        region: The box: "largest_rectangle" inside the mask, or the mask's "bounding_box".
        trim: Cut the reference's white or transparent margin off first.
    """
    y0, x0, y1, x1 = bounding_box(mask) if region == "bounding_box" else largest_rectangle(mask)
    crop = trim_bounds(reference) if trim else (0, 0, *reference.shape[:2])
    height, width = y1 - y0, x1 - x0
    if fit == "contain":
        crop_height, crop_width = crop[2] - crop[0], crop[3] - crop[1]
        if height * crop_width <= width * crop_height:
            width = max(1, (2 * crop_width * height + crop_height) // (2 * crop_height))
        else:
            height = max(1, (2 * crop_height * width + crop_width) // (2 * crop_width))
    top, left = y0 + (y1 - y0 - height) // 2, x0 + (x1 - x0 - width) // 2
    return crop, (top, left, top + height, left + width)


def stitch(reference: np.ndarray, crop: Box, place: Box, size: int) -> np.ndarray:
    """The hint: a canvas of zeros [size, size, 3] with that part of the reference (uint8 RGB or RGBA) in its place."""
    (y0, x0, y1, x1), (top, left, bottom, right) = crop, place
    piece = Image.fromarray(np.ascontiguousarray(on_white(reference)[y0:y1, x0:x1]))
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[top:bottom, left:right] = piece.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    return canvas


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around everything inside."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def largest_rectangle(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The largest rectangle wholly inside; of several the one that ends highest, then the leftmost."""
    inside = np.asarray(mask) != 0
    rows, columns = inside.shape
    height, left, right = np.zeros(columns, int), np.zeros(columns, int), np.full(columns, columns)
    best_area, best = -1, (0, 0, 0, 0)
    for row in range(rows):
        here = inside[row]
        gaps = np.where(here, 0, np.arange(columns) + 1)
        run_left = np.maximum.accumulate(gaps)
        run_right = columns - np.maximum.accumulate(np.where(here, 0, columns - np.arange(columns))[::-1])[::-1]
        height = np.where(here, height + 1, 0)
        left = np.where(here, np.maximum(left, run_left), 0)
        right = np.where(here, np.minimum(right, run_right), columns)
        area = np.where(here, height * (right - left), 0)
        place = int(np.argmax(area))
        if area[place] > best_area:
            best_area = int(area[place])
            best = (row + 1 - int(height[place]), int(left[place]), row + 1, int(right[place]))
    return best
