"""Image files, Pillow images and arrays as uint8 arrays, as displayed.

EXIF orientation is applied. Palette, grey, alpha, CMYK, Lab and 16-bit images are read; 16-bit values lose their low
byte. RGB values stay in their colour space (`read_photo` says which); CMYK, Lab and grey ones become sRGB by their
profile. A scene's alpha is dropped, a mask's is composited on black, a reference's on white (`on_white`).
"""

from __future__ import annotations

import io
import operator
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dtc_jax.data.locations import LocationError, is_remote, local_path, read_bytes
from dtc_jax.data.metadata import NO_METADATA, Metadata, metadata_of
from dtc_jax.data.modes import has_alpha, mask_array, to_8_bit, to_srgb

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
"""A path or URI, a Pillow image, or a uint8 array [h, w] or [h, w, 1 | 3 | 4]."""

MASK_THRESHOLD = 128
"""Mask values of at least this, of 255, are inside."""


class InputError(ValueError):
    """An input that cannot be used; the message is one line: what it is, what is wrong with it, what to do."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as displayed."""

    pixels: UInt8[np.ndarray, "h w 3"]
    """RGB; alpha is dropped."""
    metadata: Metadata = NO_METADATA
    """What a picture made of it says of itself, too."""


def read_photo(source: ImageLike, what: str = "scene") -> Photo:
    """A photo with its metadata.

    Raises:
        InputError: missing, unreadable, or not an image (here and below).
    """
    image = _open(source, what)
    metadata = metadata_of(image)
    return Photo(np.array(_converted(image, what).convert("RGB")), metadata)


def read_scene(source: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
    """A scene as uint8 RGB; its alpha is dropped."""
    return read_photo(source).pixels


def read_reference(source: ImageLike) -> UInt8[np.ndarray, "h w c"]:
    """A reference as uint8 RGB, or RGBA where some of it is transparent (trimming looks at alpha; see `on_white`)."""
    image = _converted(_open(source, "reference"), "reference")
    if not has_alpha(image):
        return np.array(image.convert("RGB"))
    array = np.array(image.convert("RGBA"))
    if not array[..., 3].any():
        raise InputError(f"reference {_name(source)}: wholly transparent; give a photo of the product")
    return array if (array[..., 3] < 255).any() else np.ascontiguousarray(array[..., :3])


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
        size: (height, width) that the mask must have: those of the scene as displayed, of which something must stay.

    Raises:
        InputError: another size, nothing inside, or, with `size`, nothing outside: an empty mask the wrong way round.
    """
    grey = read_mask_levels(source)
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
    if size is not None and mask.all():
        raise InputError(
            f"mask {_name(source)}: all of it is white, so nothing of the scene would be left; paint only the region "
            "to fill white, or ask for the whole scene with a box"
        )
    return mask


def read_mask_levels(source: ImageLike) -> UInt8[np.ndarray, "h w"]:
    """A mask before the threshold: 0 to 255, alpha composited on black. See `read_mask`."""
    if isinstance(source, np.ndarray):
        source = mask_array(source)
    image = _shifted(_open(source, "mask"), "mask")
    if image.mode in ("CMYK", "LAB"):
        image = to_srgb(image)
    # A grey mask's profile is passed over: its values are no colours.
    if has_alpha(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("L"))


def read_box(box: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """A box x0, y0, x1, y1 in pixels of the displayed scene (x1, y1 exclusive) as a mask of `size` = (height, width).

    Raises:
        InputError: not four numbers, empty, or not inside the scene.
    """
    height, width = size
    if len(box) != 4:
        raise InputError(f"box: needs four numbers x0,y0,x1,y1, not {len(box)}")
    try:
        x0, y0, x1, y1 = (operator.index(value) for value in box)
    except TypeError:
        raise InputError(f"box: needs four whole numbers x0,y0,x1,y1, not {list(box)}") from None
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"box {x0},{y0},{x1},{y1}: needs 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height} "
            f"(the scene is {width}x{height} pixels)"
        )
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def check_output(path: Path, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
    """Check that an image can be written, before the work of making it.

    Args:
        path: what is to be written.
        inputs: see `check_no_input`.

    Raises:
        InputError: a suffix other than .png, a folder in its place, a folder above it that is absent or read-only, or
            one of the inputs.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"output {path}: unknown suffix {path.suffix!r}; only .png is written, because it is lossless")
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"output {path}: cannot be written ({_reason(error)})") from None
    if is_folder:
        raise InputError(f"output {path}: is a folder; name a file")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"output {path}: no such folder: {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"output {path}: cannot write to the folder {folder}")
    check_no_input(path, inputs)


def check_no_input(path: Path, inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Check that what is to be written would not take the place of an input.

    Args:
        path: what is to be written.
        inputs: files that must stay, by any name or ``file://`` URI; None, what is no local file and what cannot be
            looked at are passed over. They are gone through only if there is a file at `path`.

    Raises:
        InputError: it is one of them.
    """
    if os.path.exists(path):
        for taken in inputs:
            local = None if taken is None else local_path(taken)
            if local is not None and _is_same(local, path):
                raise InputError(f"output {path}: is an input ({taken}), which would be lost; name another file")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    # Absent, too long, a loop of links, in a folder that may not be searched, or no name at all (an embedded NUL).
    except (OSError, ValueError):
        return False


def remove_unfinished(outputs: Iterable[Path]) -> None:
    """Take away what a process that was killed while it wrote one of these images has left beside it."""
    names: dict[Path, set[str]] = {}
    for path in outputs:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        for scratch in folder.glob(".*.tmp"):
            # .NAME.RANDOM.tmp, as `write_image` names it.
            if scratch.name[1:].rsplit(".", 2)[0] in wanted:
                scratch.unlink(missing_ok=True)


def write_image(path: Path, image: UInt8[np.ndarray, "h w 3"], metadata: Metadata | None = None) -> None:
    """Write a PNG, with the metadata of the photo that it was made of, beside its destination and rename it.

    Raises:
        InputError: it cannot be written.
    """
    check_output(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            Image.fromarray(image).save(file, format="PNG", **_saved_with(metadata or NO_METADATA))
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


def _saved_with(metadata: Metadata) -> dict[str, bytes]:
    entries = {"icc_profile": metadata.icc_profile, "exif": metadata.exif}
    return {name: value for name, value in entries.items() if value is not None}


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"({type(source).__name__})"


def _open(source: Any, what: str) -> Image.Image:
    """The decoded image, oriented as displayed."""
    if isinstance(source, np.ndarray):
        return _from_array(source, what)
    if isinstance(source, Image.Image):
        return _decoded(source, what, _name(source))
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{what}: needs a path, a Pillow image or a numpy array, not {type(source).__name__}")
    try:
        content: IO[bytes] = io.BytesIO(read_bytes(source)) if is_remote(source) else open(source, "rb")  # noqa: SIM115
    except LocationError as error:
        raise InputError(f"{what} {source}: cannot be read ({error})") from None
    except FileNotFoundError:
        raise InputError(f"{what} {_name(source)}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{what} {_name(source)}: is a folder; name an image file") from None
    except PermissionError:
        raise InputError(f"{what} {_name(source)}: cannot be read (permission denied)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {_name(source)}: cannot be read ({_reason(error)})") from None
    with content:
        return _decoded(content, what, _name(source))


def _decoded(source: Any, what: str, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # A large photo is no reason for a warning; beyond twice that size Pillow refuses.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return _oriented(source)
            with Image.open(source) as image:
                image.load()
                return _oriented(image)
    except Image.UnidentifiedImageError:
        raise InputError(f"{what} {name}: not an image that Pillow can read; give a JPEG or PNG") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{what} {name}: too large ({str(error).split(', could')[0]}); make it smaller") from None
    except MemoryError:
        raise InputError(f"{what} {name}: too large for this machine's memory; make it smaller") from None
    # Every format's decoder has its own errors on damaged files.
    except Exception as error:
        raise InputError(f"{what} {name}: cannot be decoded ({_reason(error)}); the file may be damaged") from None


def _oriented(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # A damaged EXIF block turns nothing, in a viewer neither.
    except Exception:
        image.load()
        return image.copy()


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


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


def _shifted(image: Image.Image, what: str) -> Image.Image:
    try:
        return to_8_bit(image)
    except ValueError as error:
        raise InputError(f"{what}: {error}") from None


def _converted(image: Image.Image, what: str) -> Image.Image:
    return to_srgb(_shifted(image, what))
