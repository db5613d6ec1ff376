"""What one request, one visitor and the whole server may use, and the checks that hold them to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.data.images import InputError, read_mask, read_reference, read_scene

SEEDS = 2**32
"""Seeds are from 0 to one less than this."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All at least 1; the defaults suit one machine that a few people share."""

    max_upload_megabytes: int = 20
    """Largest file that may be uploaded, and largest request."""
    max_megapixels: float = 16.0
    """Largest scene, mask or reference, in millions of pixels."""
    max_images: int = 8
    """Most images of one request."""
    max_steps: int = 100
    """Most solver steps of one request."""
    max_queue: int = 16
    """Requests that may wait; the next one is refused."""
    max_seconds: float = 300.0
    """Longest time that one request may compute; looked at between previews."""
    max_undo: int = 8
    """Earlier scenes that a visitor can go back to."""
    max_kept_megabytes: int = 64
    """What a visitor's earlier scenes may take in memory (one is always kept), and what a request's images may."""
    max_sessions: int = 16
    """Visitors whose scenes and results are kept; beyond that the one who came first is forgotten."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 1):
                raise InputError(f"{field.name} must be at least 1, not {value}")


def open_upload(
    path: str | None, what: Literal["scene", "mask", "reference"], limits: Limits
) -> UInt8[np.ndarray, "h w *c"]:
    """An uploaded file as an array; its size is read from its header, before anything is decoded.

    Args:
        path: where the upload lies; None if there was none.
        what: "scene" and "reference" give [h, w, 3 | 4], "mask" gives {0, 1} [h, w].
        limits: the pixels that there may be.

    Raises:
        InputError: nothing there, not an image, too large, or damaged; never with the file's path.
    """
    if path is None:
        raise InputError(f"{what}: is missing; upload one")
    try:
        with Image.open(path) as image:
            check_pixels(image.size, what, limits)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: not an image that can be read; give a JPEG or PNG") from None
    reader = {"scene": read_scene, "mask": read_mask, "reference": read_reference}[what]
    try:
        return reader(path)
    except InputError as error:
        raise InputError(str(error).replace(f" {path}", "")) from None


def check_pixels(size: tuple[int, int], what: str, limits: Limits) -> None:
    """
    Raises:
        InputError: width times height is more than allowed.
    """
    width, height = size
    if width * height > limits.max_megapixels * 1e6:
        raise InputError(
            f"{what}: {width}x{height} pixels are more than {limits.max_megapixels:g} megapixels; give a smaller image"
        )


def check_choices(num_images: int, num_inference_steps: int, seed: int, limits: Limits) -> None:
    """
    Raises:
        InputError: a number out of range.
    """
    for name, value, least, most in (
        ("number of images", num_images, 1, limits.max_images),
        ("steps", num_inference_steps, 1, limits.max_steps),
        ("seed", seed, 0, SEEDS - 1),
    ):
        if not least <= value <= most:
            raise InputError(f"{name}: must be from {least} to {most}, not {value}")


def check_results(num_images: int, size: tuple[int, int], limits: Limits) -> None:
    """
    Raises:
        InputError: so many images of this size (height, width) are more than is kept.
    """
    megabytes = num_images * size[0] * size[1] * 3 / 1e6
    if num_images > 1 and megabytes > limits.max_kept_megabytes:
        raise InputError(
            f"number of images: {num_images} of {size[1]}x{size[0]} pixels are more than {limits.max_kept_megabytes} "
            "megabytes; ask for fewer"
        )


def whole(value: object, what: str) -> int:
    """A number that a request brings, as an int.

    Raises:
        InputError: not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise InputError(f"{what}: must be a whole number, not {value!r}")
    return int(value)
