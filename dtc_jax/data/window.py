"""The square window of the photo that the model sees, and the way back into the photo.

The model works at one size; a photo has any. The part round the mask is cut out, resized to the model's size, and the
result is resized back and pasted inside the mask only: no pixel outside it changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dtc_jax.data.masks import bounding_box

DEFAULT_CONTEXT = 0.65
"""The window's side over the mask's, less one: the mask takes up 1 / 1.65 = 60 % of the window, the middle of what it
does in the training images (45 to 75 %)."""

MIN_CONTEXT = 0.1
"""What is left of the context where the photo ends: more than that is not worth inventing pixels for."""

MIN_SIDE = 16
"""Pixels; a window this small is already blown up several times."""


@dataclass(frozen=True)
class Window:
    """A square in the photo's pixel coordinates; it may reach beyond the photo."""

    top: int
    left: int
    side: int

    def overlap(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the photo that lie in the window."""
        rows = slice(max(self.top, 0), min(self.top + self.side, height))
        columns = slice(max(self.left, 0), min(self.left + self.side, width))
        return rows, columns


def crop_window(mask: UInt8[np.ndarray, "h w"], context: float = DEFAULT_CONTEXT, min_side: int = MIN_SIDE) -> Window:
    """A square window that holds the mask and some of its surroundings.

    Its side is that of the mask's bounding box times 1 + context. Where the photo is too small for it, the context
    shrinks to what the photo's shorter side allows, though not below `MIN_CONTEXT`. The window is centred on the box
    and shifted into the photo; it reaches beyond only where it is larger than the photo.

    Args:
        mask: non-zero = fill; not empty.
        context: 0 or more.
        min_side: the least side in pixels (where the photo is that large).

    Raises:
        ValueError: an empty mask or a negative context.
    """
    if not (math.isfinite(context) and context >= 0):
        raise ValueError(f"context must be a number of at least 0, not {context}")
    height, width = mask.shape
    y0, x0, y1, x1 = bounding_box(mask)
    box_side = max(y1 - y0, x1 - x0)
    wanted = max(math.ceil(box_side * (1 + context)), min_side)
    least = math.ceil(box_side * (1 + min(context, MIN_CONTEXT)))
    side = min(wanted, max(min(height, width), least))
    return Window(_place(y0, y1, side, height), _place(x0, x1, side, width), side)


def _place(start: int, stop: int, side: int, length: int) -> int:
    if side >= length:
        return -((side - length) // 2)
    return min(max((start + stop - side) // 2, 0), length - side)


def extract(image: UInt8[np.ndarray, "h w 3"], window: Window, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The window's content at the model's size; beyond the photo its edge is repeated."""
    return _resize(_pad(image, window, cv2.BORDER_REPLICATE), size)


def extract_mask(mask: UInt8[np.ndarray, "h w"], window: Window, size: int) -> UInt8[np.ndarray, "size size"]:
    """The mask {0, 1} in the window at the model's size.

    A pixel that covers any of the mask is inside: otherwise what is to be replaced would show at the rim, and thin
    masks would vanish. Beyond the photo there is nothing to fill.
    """
    padded = _pad((mask != 0).astype(np.float32), window, cv2.BORDER_CONSTANT)
    if size >= window.side:
        return cv2.resize(padded, (size, size), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    return (cv2.resize(padded, (size, size), interpolation=cv2.INTER_AREA) > 1e-4).astype(np.uint8)


def extract_hole(mask: UInt8[np.ndarray, "h w"], window: Window, size: int) -> UInt8[np.ndarray, "size size"]:
    """Where `extract` shows what is inside the mask: there, and beyond the photo where that is repeated."""
    repeated = _pad((mask != 0).astype(np.uint8), window, cv2.BORDER_REPLICATE)
    return extract_mask(repeated, Window(0, 0, window.side), size)


def put_back(
    scene: UInt8[np.ndarray, "h w 3"],
    generated: Float[np.ndarray, "size size 3"] | UInt8[np.ndarray, "size size 3"],
    window: Window,
    mask: UInt8[np.ndarray, "h w"],
    feather: int = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The scene with the generated window inside the mask; every pixel outside the mask is the scene's own.

    Args:
        scene: the whole photo.
        generated: the model's result for the window: floating-point in [0, 1], or uint8.
        window: where it belongs.
        mask: of the whole photo, non-zero = fill.
        feather: width in pixels of the blend from scene to result, inside the mask; see also `default_feather`.
    """
    if generated.dtype != np.uint8:
        generated = np.rint(np.clip(generated, 0, 1) * 255).astype(np.uint8)
    rows, columns = window.overlap(*mask.shape)
    patch = _resize(generated, window.side)[
        rows.start - window.top : rows.stop - window.top, columns.start - window.left : columns.stop - window.left
    ]
    result = scene.copy()
    inside = mask[rows, columns] != 0
    target = result[rows, columns]
    if feather > 0:
        weight = np.clip(_depth(mask, rows, columns) / (feather + 1), 0, 1)[..., None]
        patch = np.rint(target + weight * (patch.astype(np.float32) - target)).astype(np.uint8)
    target[inside] = patch[inside]
    return result


def default_feather(window: Window, mask: UInt8[np.ndarray, "h w"], size: int) -> int:
    """As many of the photo's pixels as one of the model's covers, where the result has to be enlarged; else 0.

    The model knows its result's edge no better than that. Of the mask's largest depth it is a quarter at most, so that
    a thin mask shows the product and not the scene.

    Args:
        window: where the result belongs.
        mask: of the whole photo, non-zero = fill.
        size: side of the model's images.
    """
    wanted = window.side // size if window.side > size else 0
    if wanted == 0:
        return 0
    depth = float(_depth(mask, *window.overlap(*mask.shape)).max())
    return min(wanted, int(depth / 4))


def _depth(mask: UInt8[np.ndarray, "h w"], rows: slice, columns: slice) -> Float[np.ndarray, "rows columns"]:
    """How far inside the mask each pixel of the window lies, in pixels; 0 outside.

    Where the photo ends the mask has no edge: the distance is that to the nearest of the photo's pixels outside it.
    """
    # One pixel more where there is one: the window may end where the mask does.
    top, left = max(rows.start - 1, 0), max(columns.start - 1, 0)
    around = (mask[top : rows.stop + 1, left : columns.stop + 1] != 0).astype(np.uint8)
    distance = cv2.distanceTransform(around, cv2.DIST_L2, 5)
    return distance[
        rows.start - top : rows.stop - top,
        columns.start - left : columns.stop - left,
    ]


def _pad(image: np.ndarray, window: Window, border: int) -> np.ndarray:
    rows, columns = window.overlap(*image.shape[:2])
    return cv2.copyMakeBorder(
        image[rows, columns],
        rows.start - window.top,
        window.top + window.side - rows.stop,
        columns.start - window.left,
        window.left + window.side - columns.stop,
        border,
        value=0,
    )


def _resize(image: UInt8[np.ndarray, "s s 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Area averages when shrinking, cubic when growing."""
    if image.shape[0] == size:
        return image
    interpolation = cv2.INTER_AREA if size < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=interpolation)
