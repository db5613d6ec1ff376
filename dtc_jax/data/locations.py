"""Where files lie: on this machine, or behind a URI that fsspec opens (gs://, s3://, https://, memory://)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

Location: TypeAlias = Path | str
"""A local path, or a URI as text (a Path would take its double slash away)."""


class LocationError(OSError):
    """A file that cannot be read; the message says why, without its name."""


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether it is a URI and not a path."""
    return "://" in os.fspath(location)


def local_path(location: str | os.PathLike[str]) -> Path | None:
    """Where a file lies on this machine; None for what lies elsewhere.

    ``file://`` names a path as fsspec takes it: with ``~`` for the user's home, which is no part of plain paths.
    """
    text = os.fspath(location)
    scheme, separator, path = text.partition("://")
    if not separator:
        return Path(text)
    if scheme not in ("file", "local"):
        return None
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # ~USER with a character that no user's name can have
        return Path(path)


def read_bytes(location: str | os.PathLike[str]) -> bytes:
    """The whole content of a file.

    Raises:
        LocationError: it cannot be read, or there is no package for this kind of URI.
    """
    if not is_remote(location):
        try:
            return Path(location).read_bytes()
        except OSError as error:
            raise LocationError(error.strerror or type(error).__name__) from None
    try:
        import fsspec
    except ImportError:
        raise LocationError("URIs need fsspec; install it: pip install fsspec") from None
    try:
        with fsspec.open(os.fspath(location), "rb") as file:
            content: bytes = file.read()
        return content
    except FileNotFoundError:
        raise LocationError("no such file") from None
    # Every file system behind fsspec has its own errors, and none of them is the caller's.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LocationError(reason) from None


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
"""Of the files that count as images in a folder."""


def images_in(folder: Path) -> list[Path]:
    """A folder's image files in the order of their names; hidden ones are none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in files if not path.name.startswith(".")]
