"""Files that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import time
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


def remove_unfinished_checkpoints(folder: Path, attempts: int = 1) -> None:
    """Remove what half-written checkpoints left in a folder, which has their whole size.

    Args:
        folder: Of Orbax's checkpoints.
        attempts: How often to try, a tenth of a second apart: threads of a save that failed may still write there.
    """
    for attempt in range(attempts):
        unfinished = list(folder.glob("*.orbax-checkpoint-tmp*"))
        if not unfinished:
            return
        if attempt:
            time.sleep(0.1)
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
