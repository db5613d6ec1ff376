"""Command lines with one-line errors."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import tyro

Arguments = TypeVar("Arguments")
Parameters = ParamSpec("Parameters")


class UsageError(ValueError):
    """A command line that cannot be understood; the message is one line."""


def printable(error: BaseException | str) -> str:
    """A message, or an error's, in one line that a terminal shows as it is: the rest is escaped, as in a repr."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(error))


def reports_errors(*kinds: type[Exception]) -> Callable[[Callable[Parameters, int]], Callable[Parameters, int]]:
    """For a command's `main`: errors of use end it with exit code 2 and one line on the standard error output.

    Ctrl-C ends it with 130.

    Args:
        kinds: Errors of use beside `UsageError`.
    """

    errors_of_use: tuple[type[Exception], ...] = (UsageError, *kinds)

    def decorate(main: Callable[Parameters, int]) -> Callable[Parameters, int]:
        @functools.wraps(main)
        def reporting(*args: Parameters.args, **options: Parameters.kwargs) -> int:
            try:
                return main(*args, **options)
            except errors_of_use as error:
                print(f"error: {printable(error)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return 130

        return reporting

    return decorate


def parse_arguments(
    kind: type[Arguments], argv: Sequence[str], program: str, default: Arguments | None = None
) -> Arguments:
    """Parse a command line into a dataclass; flags that are not given are as in `default`, where there is one.

    Raises:
        UsageError: what tyro prints as a box, in one line.
        SystemExit: with code 0, after --help.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            if default is not None:
                return tyro.cli(kind, args=list(argv), prog=program, default=default)
            return tyro.cli(kind, args=list(argv), prog=program)
    except SystemExit as error:
        if not error.code:
            raise
        raise UsageError(f"{_one_line(messages.getvalue())} (see {program} --help)") from None


def _one_line(box: str) -> str:
    """The message of tyro's box: its lines up to the first rule, and what it suggests."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    if not lines:  # a terminal without Unicode: the title, a rule of dashes, and then the same
        lines = [line.strip().replace("--" * 10, "──" * 10) for line in box.splitlines() if line.strip()][2:]
    rule = next((index for index, line in enumerate(lines) if line.startswith("──")), len(lines))
    # Of an optional number tyro tells why it is not None, too: the flag and the value are enough.
    message = re.sub(
        r"no type matching \{None\}\|\{?([\w ]+)\}? could .* from \[(.*?)\]\..*",
        lambda found: f"{found[2].replace(chr(39), '').replace(',', '')} is not {found[1]}",
        " ".join(lines[:rule]),
    )
    suggestions = [line.split()[0] for line in lines[rule:] if line.startswith("--")]
    if suggestions and "Unrecognized" in message:
        message += f"; perhaps {' or '.join(suggestions)}"
    return message or "cannot understand the command line"
