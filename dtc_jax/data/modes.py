"""Pillow's modes brought to what is computed with: 8 bits a channel, and sRGB where a profile says what is not RGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")

# The name of a profile's space, in its bytes 16 to 20, that describes the values of a mode. RGB is left out: its values
# stay as they are, in whatever RGB space they are, and the profile goes into the result.
_SPACES = {"CMYK": b"CMYK", "L": b"GRAY", "LA": b"GRAY", "LAB": b"Lab "}


def has_alpha(image: Image.Image) -> bool:
    """Whether some of the image may be transparent."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def to_8_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey image without its low bytes (Pillow would clip), "La" as "LA"; others as they are.

    16-bit colour is read without its low bytes by Pillow itself.

    Raises:
        ValueError: floating-point values, whose range nobody knows.
    """
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64) >> 8
        shifted = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        shifted.info = {name: value for name, value in image.info.items() if name == "icc_profile"}
        return shifted
    if image.mode == "La":  # of which Pillow makes nothing else
        return image.convert("LA")
    if image.mode == "F":
        raise ValueError("floating-point images have no set range; save it with 8 or 16 bits")
    return image


def to_srgb(image: Image.Image) -> Image.Image:
    """An image that is not RGB in sRGB, by its own ICC profile; as it is without one that fits.

    CMYK and Lab are what a printer or a scanner meant by their profile only; a grey image's profile is its gamma.
    """
    if image.mode == "LAB" and "icc_profile" not in image.info:
        return _converted(image, ImageCms.createProfile("LAB"))
    profile = image.info.get("icc_profile") or b""
    if profile[16:20] != _SPACES.get(image.mode):
        return image
    try:
        return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile


def _converted(image: Image.Image, profile: ImageCms.core.CmsProfile | ImageCms.ImageCmsProfile) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    colours = image.getchannel("L") if image.mode == "LA" else image
    converted = ImageCms.profileToProfile(colours, profile, target, outputMode="RGB")
    if converted is None:
        return image
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    converted.info.pop("icc_profile", None)  # it is not the one of these values
    return converted


def mask_array(array: np.ndarray) -> np.ndarray:
    """Bool, [0, 1] and {0, 1} arrays as uint8 0..255."""
    if array.dtype.kind == "f":
        return (array >= 0.5).astype(np.uint8) * 255
    if array.dtype == bool or (array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 1):
        return array.astype(np.uint8) * 255
    return array
