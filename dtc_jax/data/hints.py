"""The hint: a canvas of zeros with the reference stitched into the place of the mask.

"Diffuse to Choose", section 3.2 and supplement 5.1. Host functions (numpy and Pillow) serve files and sampling; their
JAX twins serve the procedural world and anything else that has to be jitted. Both resize with the same triangle filter,
widened when shrinking (Pillow's ``BILINEAR``), over the trimmed crop alone, so that they agree up to rounding.

Two of the paper's other hints (section 4.3) are made of this canvas on the host, whatever made it: its edges, and the
scene with the reference in it. The third, the edges that a network finds, is made on the device.
"""

from typing import Any, Literal, get_args

import cv2
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped, UInt8
from PIL import Image

from dtc_jax.data.masks import Box, bounding_box, bounding_box_jax, largest_rectangle, largest_rectangle_jax
from dtc_jax.model_config import HintConfig

Fit = Literal["contain", "stretch"]
"""How the reference fills its box: aspect kept and centred, or the whole box."""

Region = Literal["largest_rectangle", "bounding_box"]
"""The box that a mask gives the reference: the largest inside it (the paper's), or the smallest around it."""

WHITE_TOLERANCE = 245
"""A pixel is white if all its channels are at least this (of 255): above JPEG ringing, below an off-white fabric."""

OPAQUE_TOLERANCE = 10
"""A pixel is transparent if its alpha is below this (of 255)."""

CANNY_THRESHOLDS = (30, 140)
"""Gradients (of 255) between which an edge goes on, and from which it begins."""

HOLE = 128
"""The hole of a scene: mid-grey, as the autoencoder is shown it."""


def _check(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def hint_box(mask: Shaped[np.ndarray, "h w"], region: Region = "largest_rectangle") -> Box:
    """The box ``(y0, x0, y1, x1)``, half-open, that a mask gives the reference, on the host.

    The paper takes the largest rectangle inside the mask (supplement 5.1), which for a mask that follows a silhouette
    leaves the reference few pixels. The canvas is not the scene: nothing keeps the hint inside the mask.

    Raises:
        ValueError: the mask is empty, or ``region`` unknown.
    """
    _check("region", region, Region)
    return bounding_box(mask) if region == "bounding_box" else largest_rectangle(mask)


def hint_box_jax(mask: Shaped[Array, "h w"], region: Region = "largest_rectangle") -> Int[Array, "4"]:
    """:func:`hint_box` on the device: int32 ``[y0, x0, y1, x1]``; zeros for an empty mask."""
    _check("region", region, Region)
    return bounding_box_jax(mask) if region == "bounding_box" else largest_rectangle_jax(mask)


def trim_bounds(reference: UInt8[np.ndarray, "h w c"], white: int = WHITE_TOLERANCE) -> Box:
    """The bounding box ``(y0, x0, y1, x1)``, half-open, of what is neither white nor transparent in a reference.

    Args:
        reference: uint8 RGB or RGBA. With an alpha channel in use (any pixel transparent) the alpha alone decides;
            otherwise a pixel counts as product if any channel is below ``white``.
        white: 255 finds the box outside which every pixel is exactly white.

    Returns:
        The box; the whole image if nothing is left.

    Raises:
        ValueError: not [h, w, 3] or [h, w, 4].
    """
    reference = np.asarray(reference)
    if reference.ndim != 3 or reference.shape[-1] not in (3, 4):
        raise ValueError(f"a reference must be [height, width, 3 or 4], got shape {reference.shape}")
    if reference.shape[-1] == 4 and (reference[..., 3] < OPAQUE_TOLERANCE).any():
        levels, limit = 255 - reference[..., 3:], 256 - OPAQUE_TOLERANCE
    else:
        levels, limit = reference[..., :3], white
    height, width, channels = levels.shape
    # Channels lie beside the columns: numpy is slow at reducing over so short an axis, and fast over whole rows.
    flat = levels.reshape(height, width * channels)
    rows = np.flatnonzero(flat.min(axis=1) < limit)
    columns = np.flatnonzero(flat.min(axis=0) < limit) // channels
    if rows.size == 0:
        return 0, 0, height, width
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def trim_bounds_jax(reference: Num[Array, "h w 3"]) -> Int[Array, "4"]:
    """:func:`trim_bounds` on the device, for RGB in the range [0, 255]: int32 ``[y0, x0, y1, x1]``."""
    content = (reference < WHITE_TOLERANCE).any(axis=-1)
    whole = jnp.array([0, 0, *content.shape], jnp.int32)
    return jnp.where(content.any(), bounding_box_jax(content), whole)


def placement(crop: Box, rectangle: Box, fit: Fit = "contain") -> Box:
    """Where a crop of the reference goes in the canvas: the box ``(y0, x0, y1, x1)`` inside ``rectangle``.

    ``contain`` keeps the crop's aspect and centres it, ``stretch`` takes the whole rectangle. At least one pixel.

    Raises:
        ValueError: ``fit`` is unknown.
    """
    _check("fit", fit, Fit)
    y0, x0, y1, x1 = rectangle
    height, width = y1 - y0, x1 - x0
    if fit == "contain":
        crop_height, crop_width = crop[2] - crop[0], crop[3] - crop[1]
        # whole numbers, rounded half up: the device and the host then never differ by a pixel
        if height * crop_width <= width * crop_height:
            width = max(1, (2 * crop_width * height + crop_height) // (2 * crop_height))
        else:
            height = max(1, (2 * crop_height * width + crop_width) // (2 * crop_width))
    top, left = y0 + (y1 - y0 - height) // 2, x0 + (x1 - x0 - width) // 2
    return top, left, top + height, left + width


def placement_jax(crop: Int[Array, "4"], rectangle: Int[Array, "4"], fit: Fit = "contain") -> Int[Array, "4"]:
    """:func:`placement` on the device: int32, the same whole-number arithmetic."""
    _check("fit", fit, Fit)
    y0, x0, y1, x1 = rectangle
    full_height, full_width = y1 - y0, x1 - x0
    height, width = full_height, full_width
    if fit == "contain":
        crop_height, crop_width = jnp.maximum(crop[2] - crop[0], 1), jnp.maximum(crop[3] - crop[1], 1)
        tall = full_height * crop_width <= full_width * crop_height
        fitted_width = jnp.maximum(1, (2 * crop_width * full_height + crop_height) // (2 * crop_height))
        fitted_height = jnp.maximum(1, (2 * crop_height * full_width + crop_width) // (2 * crop_width))
        height, width = jnp.where(tall, full_height, fitted_height), jnp.where(tall, fitted_width, full_width)
    top, left = y0 + (full_height - height) // 2, x0 + (full_width - width) // 2
    return jnp.stack([top, left, top + height, left + width]).astype(jnp.int32)


def stitch(
    reference: UInt8[np.ndarray, "r s c"],
    mask_or_rectangle: Shaped[np.ndarray, "h w"] | Box,
    size: tuple[int, int],
    fit: Fit = "contain",
    trim: bool = True,
    region: Region = "largest_rectangle",
) -> UInt8[np.ndarray, "h w 3"]:
    """The hint canvas, on the host.

    Args:
        reference: uint8 RGB, or RGBA, which is composited on white.
        mask_or_rectangle: the mask [h, w] (non-zero = fill), or the box itself.
        size: (height, width) of the canvas.
        fit: ``contain`` keeps the aspect and centres, ``stretch`` fills the rectangle.
        trim: cut the reference's white or transparent margin off first.
        region: which box of the mask is taken, see :func:`hint_box`.

    Returns:
        uint8 RGB [height, width, 3]: zeros outside the place of the reference.

    Raises:
        ValueError: an empty mask, a mask of another size than the canvas, a box outside it, or an unknown ``fit`` or
            ``region``.
    """
    height, width = size
    if isinstance(mask_or_rectangle, tuple):
        rectangle = mask_or_rectangle
    else:
        if np.shape(mask_or_rectangle) != (height, width):
            raise ValueError(f"the mask is {np.shape(mask_or_rectangle)}, the hint canvas {(height, width)}")
        rectangle = hint_box(mask_or_rectangle, region)
    y0, x0, y1, x1 = rectangle
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise ValueError(f"the rectangle (y0, x0, y1, x1) = {rectangle} is empty or outside a {height}x{width} canvas")
    reference = np.asarray(reference)
    crop = trim_bounds(reference) if trim else (0, 0, *reference.shape[:2])
    if reference.shape[-1] == 4:
        alpha = reference[..., 3:].astype(np.float32) / 255
        reference = np.rint(reference[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    top, left, bottom, right = placement(crop, rectangle, fit)
    piece = Image.fromarray(np.ascontiguousarray(reference[crop[0] : crop[2], crop[1] : crop[3]]))
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top:bottom, left:right] = np.asarray(piece.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    return canvas


def make_hint(
    reference: UInt8[np.ndarray, "r s c"],
    place: Shaped[np.ndarray, "h w"] | Box,
    scene: UInt8[np.ndarray, "h w 3"],
    mask: Shaped[np.ndarray, "h w"],
    config: HintConfig,
) -> UInt8[np.ndarray, "h w 3"]:
    """The batch's ``hint`` of one sample, on the host: the canvas, or what ``config.kind`` makes of it.

    Args:
        reference: see :func:`stitch`.
        place: the mask whose box the reference gets, or the box itself.
        scene: at the hint's size.
        mask: non-zero = fill; of the scene with the reference in it, what is not scene.
        config: fit, margin, box and kind.

    Raises:
        ValueError: see :func:`stitch`.
    """
    canvas = stitch(reference, place, scene.shape[:2], config.fit, config.trim, config.region)
    if config.kind == "canny":
        return canny_edges(canvas)
    return stitched_scene(canvas, scene, mask) if config.kind == "latent" else canvas


def canny_edges(canvas: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Edges of each channel by OpenCV's Canny: 255 on an edge, 0 elsewhere (paper 4.3)."""
    channels = [cv2.Canny(np.ascontiguousarray(channel), *CANNY_THRESHOLDS) for channel in np.moveaxis(canvas, -1, 0)]
    return np.stack(channels, axis=-1)


def stitched_scene(
    canvas: UInt8[Any, "*b h w 3"], scene: UInt8[Any, "*b h w 3"], mask: Shaped[Any, "*b h w"]
) -> UInt8[Any, "*b h w 3"]:
    """The scene with its hole grey and the reference over it, where the canvas has it; numpy or JAX.

    Where that is, is the box round the canvas's pixels that are not black: black pixels of a product stay.
    """

    def between(lines: Any) -> Any:
        """From the first true value of the last axis to the last."""
        return (lines.cumsum(-1) > 0) & (lines[..., ::-1].cumsum(-1)[..., ::-1] > 0)

    filled = (canvas > 0).any(-1)
    box = between(filled.any(-1))[..., :, None] & between(filled.any(-2))[..., None, :]
    box, hole = box[..., None].astype("uint8"), (mask > 0)[..., None].astype("uint8")
    return box * canvas + (1 - box) * ((1 - hole) * scene + hole * np.uint8(HOLE))


def _resize_matrix(
    out_size: int,
    in_size: int,
    out_start: Int[Array, ""],
    out_stop: Int[Array, ""],
    in_start: Int[Array, ""],
    in_stop: Int[Array, ""],
) -> Float[Array, "out in"]:
    """Triangle-filter weights that carry pixels [in_start, in_stop) to [out_start, out_stop); zero rows elsewhere."""
    position = jnp.arange(out_size, dtype=jnp.float32)[:, None]
    source = jnp.arange(in_size, dtype=jnp.float32)[None, :]
    out_length = jnp.maximum(out_stop - out_start, 1).astype(jnp.float32)
    ratio = (in_stop - in_start).astype(jnp.float32) / out_length
    center = in_start + (position + 0.5 - out_start) * ratio
    weights = jnp.maximum(1 - jnp.abs(source + 0.5 - center) / jnp.maximum(ratio, 1), 0)
    weights = weights * ((source >= in_start) & (source < in_stop))
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    return weights * ((position >= out_start) & (position < out_stop))


def stitch_jax(
    reference: Num[Array, "r s c"],
    rectangle: Int[Array, "4"],
    size: tuple[int, int],
    fit: Fit = "contain",
    trim: bool = True,
    crop: Int[Array, "4"] | None = None,
) -> Float[Array, "h w c"]:
    """:func:`stitch` on the device, jittable and vmappable: values in the reference's range, zeros outside.

    Args:
        reference: [r, s, c] in the range [0, 255]; RGB unless ``crop`` is given.
        rectangle: int32 ``[y0, x0, y1, x1]``, as from ``hint_box_jax``; an empty one gives zeros.
        size: (height, width) of the canvas, static.
        fit: see :func:`stitch`.
        trim: cut the reference's white margin off first.
        crop: the part of the reference to take, in place of ``trim``.

    Returns:
        float32 [height, width, c], not rounded.
    """
    rows, columns = reference.shape[:2]
    if crop is None:
        crop = trim_bounds_jax(reference) if trim else jnp.array([0, 0, rows, columns], jnp.int32)
    place = placement_jax(crop, rectangle, fit)
    empty = (rectangle[2] <= rectangle[0]) | (rectangle[3] <= rectangle[1])
    vertical = _resize_matrix(size[0], rows, place[0], place[2], crop[0], crop[2])
    horizontal = _resize_matrix(size[1], columns, place[1], place[3], crop[1], crop[3])
    canvas = jnp.einsum("yr,rsc,xs->yxc", vertical, reference.astype(jnp.float32), horizontal)
    return jnp.where(empty, 0.0, canvas)
