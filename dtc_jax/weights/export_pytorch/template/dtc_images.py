"""Pillow images (or paths) as uint8 arrays, as displayed.

EXIF orientation is applied. Palette, grey, alpha, CMYK and 16-bit images are read; 16-bit values lose their low byte. A
scene's alpha is dropped, a mask's is composited on black, a reference's on white.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

MASK_THRESHOLD = 128
"""Mask values of at least this, of 255, are inside."""


def read_scene(source) -> np.ndarray:
    """A scene as uint8 RGB [h, w, 3]."""
    return np.array(_open(source, "scene").convert("RGB"))


def read_reference(source) -> np.ndarray:
    """A reference as uint8 RGB, or RGBA where some of it is transparent."""
    image = _open(source, "reference")
    if not _has_alpha(image):
        return np.array(image.convert("RGB"))
    array = np.array(image.convert("RGBA"))
    if not array[..., 3].any():
        raise ValueError("reference: wholly transparent; give a photo of the product")
    return array if (array[..., 3] < 255).any() else np.ascontiguousarray(array[..., :3])


def read_mask(source, size: tuple[int, int]) -> np.ndarray:
    """A mask as uint8 {0, 1} [h, w], 1 = fill; `size` is the scene's (height, width)."""
    image = _open(source, "mask")
    if _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    grey = np.array(image.convert("L"))
    if grey.shape != size:
        raise ValueError(f"mask: is {grey.shape[1]}x{grey.shape[0]} pixels, the scene {size[1]}x{size[0]}")
    mask = (grey >= MASK_THRESHOLD).astype(np.uint8)
    if not mask.any():
        raise ValueError(f"mask: empty (values of {MASK_THRESHOLD} and more are inside); paint the region white")
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
    """The decoded image with 8 bits per channel, oriented as displayed."""
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if not isinstance(source, Image.Image):
        with Image.open(source) as file:
            file.load()
            return _to_8_bit(ImageOps.exif_transpose(file), what)
    return _to_8_bit(ImageOps.exif_transpose(source), what)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _to_8_bit(image: Image.Image, what: str) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.array(image).astype(np.int64) >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError(f"{what}: floating-point images have no set range; save it with 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError):
            return image
    return image
