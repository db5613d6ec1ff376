"""How commands end."""

from __future__ import annotations

import pytest

from dtc_jax.arguments import UsageError, reports_errors


def test_errors_of_use_end_a_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors(FileNotFoundError)
    def main(found: int, *, error: BaseException | None = None) -> int:
        """What it does."""
        if error is not None:
            raise error
        return found

    assert (main.__name__, main.__doc__) == ("main", "What it does.")
    assert [main(0), main(1)] == [0, 1]
    for error, code, line in (
        (UsageError("--steps is missing"), 2, "error: --steps is missing\n"),
        (FileNotFoundError("mask.png: no such file"), 2, "error: mask.png: no such file\n"),
        (UsageError("a\nb \x1b[31m c"), 2, "error: a\\nb \\x1b[31m c\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        assert main(0, error=error) == code
        assert capsys.readouterr() == ("", line)
    with pytest.raises(KeyError):  # a fault of the code keeps its traceback
        main(0, error=KeyError("x"))
