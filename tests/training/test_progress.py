"""What a run says of itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.training import progress as module
from dtc_jax.training.progress import Progress


class Clock:
    """Stands in for `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dtc_jax.train")
    progress = Progress(tmp_path, total_steps=100, start_step=0, batch_size=8, write=True)
    loss = float(np.float32(1) / np.float32(3))
    clock.now += 5
    progress.report(10, {"loss": loss})
    clock.now += 30
    progress.skip_time(20)
    progress.report(20, {"loss": 2 * loss})
    first, second = _lines(tmp_path)
    # Every digit: runs are compared by these numbers.
    assert (first["step"], first["loss"], first["images_per_second"]) == (10, loss, 16.0)
    assert (second["step"], second["loss"], second["images_per_second"]) == (20, 2 * loss, 8.0)
    assert "step 20/100  loss 0.6667  8.0 images/s  ETA 0:01:20" in caplog.messages[-1]


def test_speed_of_a_resumed_run(tmp_path: Path, clock: Clock) -> None:
    progress = Progress(tmp_path, total_steps=100, start_step=50, batch_size=8, write=True)
    clock.now += 4
    progress.report(60, {})
    assert _lines(tmp_path)[0]["images_per_second"] == 20.0


def test_other_processes_write_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dtc_jax.train")
    Progress(tmp_path, total_steps=2, start_step=0, batch_size=1, write=False).report(1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    assert not caplog.messages


def test_a_resumed_run_has_one_line_per_step(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 9.0}\n{"step": 4, "lo')
    progress = Progress(tmp_path, total_steps=4, start_step=2, batch_size=1, write=True)
    clock.now += 1
    progress.report(3, {"loss": 3.0})
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0)]
