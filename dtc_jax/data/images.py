"""Image files, Pillow images and arrays as uint8 arrays, as displayed.

EXIF orientation is applied. Palette, grey, alpha, CMYK and 16-bit images are read; 16-bit values lose their low byte. A
scene's alpha is dropped, a mask's is composited on black, a reference's on white (`on_white`).
"""

from __future__ import annotations

import io
import os
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
"""A path, a Pillow image, or a uint8 array [h, w] or [h, w, 1 | 3 | 4]."""

MASK_THRESHOLD = 128
"""Mask values of at least this, of 255, are inside."""

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, zlib.error, Image.DecompressionBombError)


class InputError(ValueError):
    """An input that cannot be used; the message is one line: what it is, what is wrong with it, what to do."""


def read_scene(source: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
    """A scene as uint8 RGB; its alpha is dropped.

    Raises:
        InputError: missing, unreadable, or not an image (here and below).
    """
    return np.array(_to_8_bit(_open(source, "scene"), "scene").convert("RGB"))


def read_reference(source: ImageLike) -> UInt8[np.ndarray, "h w c"]:
    """A reference as uint8 RGB, or RGBA where some of it is transparent (trimming looks at alpha; see `on_white`)."""
    image = _to_8_bit(_open(source, "reference"), "reference")
    if not _has_alpha(image):
        return np.array(image.convert("RGB"))
    array = np.array(image.convert("RGBA"))
    if not array[..., 3].any():
        raise InputError(f"reference {_name(source)}: wholly transparent; give a photo of the product")
    return array if (array[..., 3] < 255).any() else np.ascontiguousarray(array[..., :3])


def read_profile(path: str | os.PathLike[str]) -> bytes | None:
    """The ICC profile of an RGB image file, so that a result in the same colour space can say so; None if it has none.

    `read_scene` leaves RGB values as they are, in whatever RGB space they are.
    """
    try:
        with Image.open(path) as image:
            profile = image.info.get("icc_profile")
            # Bytes 16 to 20 of a profile's header name the space of the values.
            usable = image.mode in ("RGB", "RGBA", "P") and profile and profile[16:20] == b"RGB "
            return profile if usable else None
    except _DECODE_ERRORS:
        return None


def on_white(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB as it is; RGBA composited on white."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def read_mask(source: ImageLike, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """A mask as uint8 {0, 1}, 1 = fill.

    Args:
        source: in files and images, values of at least 128 (of 255, after conversion to grey) are inside. Arrays may
            also be bool, floating-point in [0, 1] (at least 0.5 is inside), or integers that are all 0 or 1.
        size: (height, width) that the mask must have: those of the scene as displayed.

    Raises:
        InputError: another size, or nothing inside.
    """
    if isinstance(source, np.ndarray):
        source = _mask_array(source)
    image = _to_8_bit(_open(source, "mask"), "mask")
    if _has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    grey = np.array(image.convert("L"))
    if size is not None and grey.shape != size:
        raise InputError(
            f"mask {_name(source)}: it is {grey.shape[1]}x{grey.shape[0]} pixels but the scene as displayed is "
            f"{size[1]}x{size[0]}; give a mask of the scene's size"
        )
    mask = (grey >= MASK_THRESHOLD).astype(np.uint8)
    if not mask.any():
        raise InputError(
            f"mask {_name(source)}: it is empty (its largest value is {grey.max()}, {MASK_THRESHOLD} and more is "
            "inside); paint the region to fill white"
        )
    return mask


def read_box(box: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """A box x0, y0, x1, y1 in pixels of the displayed scene (x1, y1 exclusive) as a mask of `size` = (height, width).

    Raises:
        InputError: not four numbers, empty, or not inside the scene.
    """
    height, width = size
    if len(box) != 4:
        raise InputError(f"box: needs four numbers x0,y0,x1,y1, not {len(box)}")
    x0, y0, x1, y1 = (int(value) for value in box)
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"box {x0},{y0},{x1},{y1}: needs 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height} "
            f"(the scene is {width}x{height} pixels)"
        )
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def check_output(path: Path) -> None:
    """Check that an image can be written, before the work of making it.

    Raises:
        InputError: a suffix other than .png, a folder in its place, or a folder above it that is absent or read-only.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"output {path}: unknown suffix {path.suffix!r}; only .png is written, because it is lossless")
    if path.is_dir():
        raise InputError(f"output {path}: is a folder; name a file")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"output {path}: no such folder: {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"output {path}: cannot write to the folder {folder}")


def write_image(path: Path, image: UInt8[np.ndarray, "h w 3"], profile: bytes | None = None) -> None:
    """Write a PNG, with an ICC profile if there is one, beside its destination and rename it.

    Raises:
        InputError: it cannot be written.
    """
    check_output(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            Image.fromarray(image).save(file, format="PNG", icc_profile=profile)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"output {path}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"({type(source).__name__})"


def _open(source: Any, what: str) -> Image.Image:
    """The decoded image, oriented as displayed."""
    if isinstance(source, np.ndarray):
        return _from_array(source, what)
    try:
        with warnings.catch_warnings():
            # A large photo is no reason for a warning; beyond twice that size Pillow refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return ImageOps.exif_transpose(source)
            if not isinstance(source, str | os.PathLike):
                raise InputError(f"{what}: needs a path, a Pillow image or a numpy array, not {type(source).__name__}")
            with Image.open(source) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise InputError(f"{what} {source}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{what} {source}: is a folder; name an image file") from None
    except PermissionError:
        raise InputError(f"{what} {source}: cannot be read (permission denied)") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{what} {_name(source)}: not an image that Pillow can read; give a JPEG or PNG") from None
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{what} {_name(source)}: cannot be decoded ({reason}); the file may be damaged") from None


def _from_array(array: np.ndarray, what: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise InputError(
            f"{what} (array): needs uint8 [h, w] or [h, w, 1 | 3 | 4], not {array.dtype.name} {list(array.shape)}"
        )
    if array.size == 0:
        raise InputError(f"{what} (array): has no pixels: {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _mask_array(array: np.ndarray) -> np.ndarray:
    """Bool, [0, 1] and {0, 1} arrays as uint8 0..255."""
    if array.dtype.kind == "f":
        return (array >= 0.5).astype(np.uint8) * 255
    if array.dtype == bool or (array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 1):
        return array.astype(np.uint8) * 255
    return array


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _to_8_bit(image: Image.Image, what: str) -> Image.Image:
    """16-bit images as 8-bit ones (Pillow would clip), CMYK with a profile as sRGB; other modes as they are."""
    if image.mode.startswith("I"):
        values = np.array(image)
        values = values.astype(np.int64) >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"{what}: floating-point images have no set range; save it with 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            return image
        return converted or image
    return image
