"""Files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A scratch path in the same folder, of the same suffix, that takes the place of `path` if nothing went wrong.

    Raises:
        OSError: it could not be written (a full or read-only disk); what was written is removed, and what was at
            `path` before is still there.
    """
    scratch = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all.

    Raises:
        OSError: see `written_beside`.
    """
    with written_beside(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
