"""Lines that are shown as they are, whatever names are in them: to a terminal, or in a list of one case a line."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from dtc_jax.arguments import printable


def one_line(error: Exception) -> str:
    """An error that nobody foresaw, as a reason: its kind and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def show(lines: Iterable[str]) -> None:
    """Print lines; what is not printable in them, or not in the output's encoding, is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for line in lines:
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding))
