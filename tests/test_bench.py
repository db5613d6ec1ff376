"""The measurements run and say what they measured; how fast is not a matter for tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtc_jax.bench.__main__ import main
from dtc_jax.bench.data import keep_to_cores
from dtc_jax.config import ConfigError

SMALL = ["data", "--batches", "3", "--batch-size", "2", "--records", "2", "--cores", "0"]


def test_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    out = capsys.readouterr().out
    assert "2 records of 512 pixels" in out and "6 in 3 batches, 0 broken" in out
    assert "samples/s per core" in out and "wall clock" in out and "MiB" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["dta"], "no measurement 'dta'"),
        (["data", "--batches", "0"], "--batches must be at least 1"),
        (["data", "--cores", "4096"], "--cores 4096: there are"),
        (["data", "--cores", "0", "--path", "ABSENT"], "no such folder"),
        (["data", "--bathces", "3"], "--bathces"),
    ],
)
def test_errors(argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent") if part == "ABSENT" else part for part in argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and "data" in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_cores() -> None:
    before = os.sched_getaffinity(0)
    try:
        keep_to_cores(1)
        assert len(os.sched_getaffinity(0)) == 1 and os.sched_getaffinity(0) < before | {-1}
    finally:
        os.sched_setaffinity(0, before)
    with pytest.raises(ConfigError, match="--cores -1"):
        keep_to_cores(-1)
