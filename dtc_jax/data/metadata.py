"""What a photo's file says beside its pixels, for a picture made of it: the colour space, and who took it when."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base

# What describes the photo. The rest of the first directory describes the file that it was in: a TIFF's strips, say.
_KEPT = (
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Rating,
    Base.Copyright,
    Base.XPTitle,
    Base.XPComment,
    Base.XPAuthor,
    Base.XPKeywords,
    Base.XPSubject,
)
# A maker's note points to places in the file that it was in.
_DROPPED = (Base.MakerNote, Base.ExifInteroperabilityOffset)
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Metadata:
    """What goes with the pixels into a file."""

    icc_profile: bytes | None = None
    """The colour space of the RGB values; None means sRGB."""
    exif: bytes | None = None
    """An EXIF block, orientation 1."""


NO_METADATA = Metadata()
"""sRGB, by nobody."""


def metadata_of(image: Image.Image) -> Metadata:
    """The metadata that hold for a picture of the same size and RGB values as a decoded image turned as displayed.

    The ICC profile of an RGB image is kept: its values are not converted. EXIF is kept but for the orientation, which
    becomes 1, the thumbnail, which shows the old picture, and maker's notes; damaged EXIF is left out.
    """
    profile = image.info.get("icc_profile")
    usable = image.mode in ("RGB", "RGBA", "P") and profile and profile[16:20] == b"RGB "
    return Metadata(profile if usable else None, _exif(image))


def _exif(image: Image.Image) -> bytes | None:
    # Whatever is wrong in a block that nobody needs for the pixels is no reason to refuse them.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _kept_exif(image)
    except Exception:
        return None


def _kept_exif(image: Image.Image) -> bytes | None:
    found = image.getexif()
    kept = Image.Exif()
    for tag in _KEPT:
        if tag in found:
            kept[tag] = found[tag]
    for directory in (IFD.Exif, IFD.GPSInfo):
        values: dict[int, Any] = {tag: value for tag, value in found.get_ifd(directory).items() if tag not in _DROPPED}
        for tag, size in zip((Base.ExifImageWidth, Base.ExifImageHeight), image.size, strict=True):
            if directory == IFD.Exif and tag in values:
                values[tag] = size
        if values:
            kept[directory] = values
    if not len(kept):
        return None
    kept[Base.Orientation] = 1
    block = kept.tobytes()
    return block if len(block) <= _MOST_BYTES else None
