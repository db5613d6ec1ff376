"""Masks as binary arrays: largest inner rectangle, bounding box, and small conversions.

Polarity everywhere: 1 (white) = the region to fill. Boxes are half-open pixel ranges ``(y0, x0, y1, x1)``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt8

Box = tuple[int, int, int, int]


def binarize(array: Shaped[np.ndarray, "*shape"], threshold: int = 128) -> UInt8[np.ndarray, "*shape"]:
    """A mask as read from a file (uint8, 0..255) as uint8 {0, 1}: values of at least ``threshold`` are inside."""
    return (np.asarray(array) >= threshold).astype(np.uint8)


def largest_rectangle(mask: Shaped[np.ndarray, "h w"]) -> Box:
    """The largest axis-aligned rectangle that lies wholly inside a mask, on the host, in O(h w).

    The histogram method of "Diffuse to Choose" (supplement 5.1): a rectangle that ends in row ``i`` and is as tall as
    the run of ones above pixel ``(i, j)`` reaches left and right as far as every row of that run allows. Height, left
    and right follow from running maxima; a run is kept apart from the one above it in its column by an offset
    per run, so that one cumulative maximum serves all rows.

    Args:
        mask: 2-D, bool or numbers; non-zero is inside.

    Returns:
        ``(y0, x0, y1, x1)``, half-open. Of several rectangles of the largest area, the one whose last row is highest in
        the image; among those, the one found from the leftmost column of its own height.

    Raises:
        ValueError: the mask is not 2-D, or has nothing inside.
    """
    inside = np.asarray(mask) != 0
    if inside.ndim != 2:
        raise ValueError(f"a mask must be two-dimensional [height, width], got shape {inside.shape}")
    if not inside.any():
        raise ValueError(f"the mask is empty: none of its {inside.size} pixels is inside, so there is nothing to fill")
    # Nothing outside the bounding box matters, and the mask is often a small part of its image.
    top, first, bottom, last = bounding_box(inside)
    inside = inside[top:bottom, first:last]
    rows, columns = inside.shape
    row_index = np.arange(rows, dtype=np.int32)[:, None]
    column_index = np.arange(columns, dtype=np.int32)[None, :]

    row_after_gap = np.maximum.accumulate(np.where(inside, np.int32(0), row_index + 1), axis=0)
    height = row_index + 1 - row_after_gap
    run_left = np.maximum.accumulate(np.where(inside, np.int32(0), column_index + 1), axis=1)
    gap_to_right = np.where(inside, np.int32(0), columns - column_index)
    run_right = np.maximum.accumulate(gap_to_right[:, ::-1], axis=1)[:, ::-1]  # columns minus the first outside column

    # row_after_gap never decreases down a column: as an offset it restarts the running maximum after each gap
    offset = row_after_gap * np.int32(columns + 1)
    left = np.maximum.accumulate(np.where(inside, run_left, 0) + offset, axis=0) - offset
    right = columns - (np.maximum.accumulate(np.where(inside, run_right, 0) + offset, axis=0) - offset)

    area = np.where(inside, height * (right - left), 0)
    i, j = np.unravel_index(int(np.argmax(area)), area.shape)
    y0, x0, y1, x1 = int(i + 1 - height[i, j]), int(left[i, j]), int(i + 1), int(right[i, j])
    return top + y0, first + x0, top + y1, first + x1


def largest_rectangle_jax(mask: Shaped[Array, "h w"]) -> Int[Array, "4"]:
    """:func:`largest_rectangle` on the device: the same algorithm and tie-break, jittable and vmappable.

    Args:
        mask: bool or numbers; non-zero is inside.

    Returns:
        int32 ``[y0, x0, y1, x1]``, half-open; zeros for an empty mask (a traced function cannot raise).
    """
    inside = jnp.asarray(mask) != 0
    rows, columns = inside.shape
    column_index = jnp.arange(columns, dtype=jnp.int32)
    run_left = jax.lax.cummax(jnp.where(inside, 0, column_index + 1), axis=1)
    run_right = jax.lax.cummin(jnp.where(inside, columns, column_index), axis=1, reverse=True)

    def step(carry: Any, row: Any) -> tuple[Any, None]:
        height, left, right, best_area, best = carry
        i, inside_row, run_left_row, run_right_row = row
        height = jnp.where(inside_row, height + 1, 0)
        left = jnp.where(inside_row, jnp.maximum(left, run_left_row), 0)
        right = jnp.where(inside_row, jnp.minimum(right, run_right_row), columns)
        area = jnp.where(inside_row, height * (right - left), 0)
        j = jnp.argmax(area)
        found = jnp.stack([i + 1 - height[j], left[j], i + 1, right[j]])
        better = area[j] > best_area
        return (height, left, right, jnp.where(better, area[j], best_area), jnp.where(better, found, best)), None

    zeros = jnp.zeros(columns, jnp.int32)
    start = (zeros, zeros, jnp.full(columns, columns, jnp.int32), jnp.int32(0), jnp.zeros(4, jnp.int32))
    (_, _, _, _, best), _ = jax.lax.scan(step, start, (jnp.arange(rows, dtype=jnp.int32), inside, run_left, run_right))
    return best


def bounding_box(mask: Shaped[np.ndarray, "h w"]) -> Box:
    """The smallest box ``(y0, x0, y1, x1)``, half-open, around everything inside a mask, on the host.

    Raises:
        ValueError: the mask has nothing inside.
    """
    inside = np.asarray(mask) != 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if rows.size == 0:
        raise ValueError(f"the mask is empty: none of its {inside.size} pixels is inside, so it has no bounding box")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def bounding_box_jax(mask: Shaped[Array, "h w"]) -> Int[Array, "4"]:
    """:func:`bounding_box` on the device: int32 ``[y0, x0, y1, x1]``; zeros for an empty mask."""
    inside = jnp.asarray(mask) != 0
    rows, columns = inside.any(axis=1), inside.any(axis=0)
    box = jnp.stack(
        [
            jnp.argmax(rows),
            jnp.argmax(columns),
            rows.shape[0] - jnp.argmax(rows[::-1]),
            columns.shape[0] - jnp.argmax(columns[::-1]),
        ]
    ).astype(jnp.int32)
    return jnp.where(rows.any(), box, 0)


def box_mask(box: Box, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """A uint8 {0, 1} mask of the given size that is 1 inside ``box`` (clipped to the image), on the host.

    Raises:
        ValueError: the box has no pixel inside the image.
    """
    y0, x0, y1, x1 = box
    mask = np.zeros((height, width), np.uint8)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    if not mask.any():
        raise ValueError(f"the box (y0, x0, y1, x1) = {tuple(box)} has no pixel inside an image of {height}x{width}")
    return mask


def box_mask_jax(box: Int[Array, "4"], height: int, width: int) -> Bool[Array, "h w"]:
    """:func:`box_mask` on the device, as bool; an empty box gives an empty mask."""
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (y >= box[0]) & (y < box[2]) & (x >= box[1]) & (x < box[3])


def resize_mask_nearest(mask: Shaped[Any, "*b h w c"], factor: int) -> Shaped[Any, "*b latent_h latent_w c"]:
    """A mask [..., h, w, c] at 1/``factor`` of its size by nearest neighbour, as PyTorch's ``interpolate`` takes it:
    the first pixel of each ``factor`` x ``factor`` block. Works on numpy and JAX arrays.

    Raises:
        ValueError: a side is not a multiple of ``factor``.
    """
    height, width = mask.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"a mask of {height}x{width} does not divide into latent pixels of {factor}x{factor}")
    return mask[..., ::factor, ::factor, :]
