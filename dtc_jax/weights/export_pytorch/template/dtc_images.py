"""Pillow images (or paths, or uint8 arrays) as uint8 arrays, as displayed.

EXIF orientation is applied. Palette, grey, alpha, CMYK, Lab and 16-bit images are read; 16-bit values lose their low
byte. RGB values stay in their colour space; CMYK, Lab and grey ones become sRGB by their profile. A scene's alpha is
dropped, a mask's is composited on black, a reference's on white.
"""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image, ImageOps

from .dtc_metadata import Metadata, metadata_of
from .dtc_modes import has_alpha, mask_array, to_8_bit, to_srgb

MASK_THRESHOLD = 128
"""Mask values of at least this, of 255, are inside."""


def read_photo(source) -> tuple[np.ndarray, Metadata]:
    """A scene as uint8 RGB [h, w, 3], with the profile and the EXIF that hold for a picture made of it, too."""
    image = _open(source, "scene")
    metadata = metadata_of(image)
    return np.array(_converted(image, "scene").convert("RGB")), metadata


def read_scene(source) -> np.ndarray:
    """A scene as uint8 RGB [h, w, 3]."""
    return read_photo(source)[0]


def read_reference(source) -> np.ndarray:
    """A reference as uint8 RGB, or RGBA where some of it is transparent."""
    image = _converted(_open(source, "reference"), "reference")
    if not has_alpha(image):
        return np.array(image.convert("RGB"))
    array = np.array(image.convert("RGBA"))
    if not array[..., 3].any():
        raise ValueError("reference: wholly transparent; give a photo of the product")
    return array if (array[..., 3] < 255).any() else np.ascontiguousarray(array[..., :3])


def read_mask(source, size: tuple[int, int]) -> np.ndarray:
    """A mask as uint8 {0, 1} [h, w], 1 = fill; `size` is the scene's (height, width).

    Arrays may also be bool, floating-point in [0, 1] (at least 0.5 is inside), or integers that are all 0 or 1.
    """
    if isinstance(source, np.ndarray):
        source = mask_array(source)
    image = _shifted(_open(source, "mask"), "mask")
    if image.mode in ("CMYK", "LAB"):
        image = to_srgb(image)
    # A grey mask's profile is passed over: its values are no colours.
    if has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    grey = np.array(image.convert("L"))
    if grey.shape != size:
        raise ValueError(f"mask: is {grey.shape[1]}x{grey.shape[0]} pixels, the scene {size[1]}x{size[0]}")
    mask = (grey >= MASK_THRESHOLD).astype(np.uint8)
    if not mask.any():
        raise ValueError(f"mask: empty (values of {MASK_THRESHOLD} and more are inside); paint the region white")
    if mask.all():
        raise ValueError("mask: all of it is white, so nothing of the scene would be left; paint only the region white")
    return mask


def read_box(box, size: tuple[int, int]) -> np.ndarray:
    """A box x0, y0, x1, y1 in pixels of the scene (x1, y1 exclusive) as a mask."""
    height, width = size
    x0, y0, x1, y1 = (int(value) for value in box)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(f"box {x0},{y0},{x1},{y1}: needs 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}")
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def on_white(image: np.ndarray) -> np.ndarray:
    """RGB as it is; RGBA composited on white."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _open(source, what: str) -> Image.Image:
    """The decoded image, oriented as displayed."""
    if isinstance(source, np.ndarray):
        return _from_array(source, what)
    with warnings.catch_warnings():
        # A large photo is no reason for a warning; beyond twice that size Pillow refuses.
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return _oriented(source)
        with Image.open(source) as file:
            file.load()
            return _oriented(file)


def _oriented(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # A damaged EXIF block turns nothing, in a viewer neither.
    except Exception:
        image.load()
        return image.copy()


def _from_array(array: np.ndarray, what: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ValueError(f"{what}: needs uint8 [h, w] or [h, w, 1 | 3 | 4], not {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _shifted(image: Image.Image, what: str) -> Image.Image:
    try:
        return to_8_bit(image)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _converted(image: Image.Image, what: str) -> Image.Image:
    return to_srgb(_shifted(image, what))
