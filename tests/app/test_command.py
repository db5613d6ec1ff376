"""The command line: what is wrong is said in one line, before anything is loaded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dtc_jax.app.command import main

ROOT = Path(__file__).resolve().parents[2]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    return error


def test_bad_starts_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra `app`)")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in fails(capsys, "--port", port)
    assert str(tmp_path / "absent") in fails(capsys, "--port", "0", "--checkpoint", str(tmp_path / "absent"))
    assert "--port must be from 0" in fails(capsys, "--port", "70000")
    assert "no such address" in fails(capsys, "--host", "no.such.host.invalid")
    assert "max_images must be at least 1" in fails(capsys, "--max-images", "0")
    assert "--max-imagess" in fails(capsys, "--max-imagess", "3")


def test_without_gradio_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError('no gradio')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-m", "dtc_jax.app"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "pip install 'dtc-jax[app]'" in result.stderr
