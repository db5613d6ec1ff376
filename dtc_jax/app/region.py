"""The region to fill: painted over the scene, the box round the paint, a box in numbers, or an uploaded mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, UInt8

from dtc_jax.app.limits import Limits, open_upload
from dtc_jax.data.images import InputError, read_box
from dtc_jax.data.masks import bounding_box

RegionKind: TypeAlias = Literal["Painted area", "Box around the paint", "Box in pixels", "Mask image"]
REGION_KINDS: tuple[RegionKind, ...] = get_args(RegionKind)

MASK_IMAGE: RegionKind = "Mask image"

PAINTED = 64
"""Paint of at least this opacity, of 255, counts: brushes have soft edges."""


def region_mask(
    kind: str,
    layers: Sequence[UInt8[np.ndarray, "lh lw 4"]],
    box: str | None,
    mask_path: str | None,
    size: tuple[int, int],
    limits: Limits,
) -> UInt8[np.ndarray, "h w"]:
    """The mask {0, 1} of `size` = (height, width) that a request describes.

    Args:
        kind: one of `REGION_KINDS`; it says which of the following counts.
        layers: what was painted, RGBA, each of the scene's size.
        box: "x0,y0,x1,y1" in pixels.
        mask_path: an uploaded image, white = fill.
        size: the scene's.
        limits: see `open_upload`.

    Raises:
        InputError: nothing painted, not a box, or a mask of another size.
    """
    if kind not in REGION_KINDS:
        raise InputError(f"region: must be one of {', '.join(REGION_KINDS)}, not {kind!r}")
    painted = _painted(layers, size)
    if kind in ("Box in pixels", MASK_IMAGE) and painted.any():
        raise InputError(
            f"region: there is paint on the scene, but {kind!r} counts; choose {REGION_KINDS[0]!r} or clear it"
        )
    if kind == "Box in pixels":
        return read_box(parse_box(box), size)
    if kind == MASK_IMAGE:
        mask = open_upload(mask_path, "mask", limits)
        if mask.shape != size:
            raise InputError(
                f"mask: it is {mask.shape[1]}x{mask.shape[0]} pixels but the scene is {size[1]}x{size[0]}; "
                "give a mask of the scene's size"
            )
        return mask
    if not painted.any():
        raise InputError("region: nothing is painted yet; paint over the place in the scene where the product goes")
    if kind == "Box around the paint":
        y0, x0, y1, x1 = bounding_box(painted)
        painted[y0:y1, x0:x1] = True
    return painted.astype(np.uint8)


def _painted(layers: Sequence[UInt8[np.ndarray, "lh lw 4"]], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    painted = np.zeros(size, bool)
    for layer in layers:
        if layer.shape[:2] != size:
            raise InputError("region: the paint is not of the scene's size; clear the paint and paint again")
        painted |= layer[..., 3] >= PAINTED
    return painted


def parse_box(text: str | None) -> tuple[int, int, int, int]:
    """
    Raises:
        InputError: not four whole numbers.
    """
    numbers = re.fullmatch(r"\s*(-?\d{1,9})" + r"[\s,;]+(-?\d{1,9})" * 3 + r"\s*", text or "")
    if numbers is None:
        raise InputError("box: needs four whole numbers x0,y0,x1,y1, such as 40,60,200,240")
    x0, y0, x1, y1 = (int(number) for number in numbers.groups())
    return x0, y0, x1, y1
