"""A SIGTERM to one of two processes stops both after the same step, with a checkpoint that both go on from."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.training.runs import free_port, start

pytestmark = pytest.mark.timeout(900)


def _start(run_dir: Path, steps: int) -> list[subprocess.Popen[str]]:
    cluster = ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--cpu-devices", "1"]
    # One layer alone: the second process has to compile the step whatever the cache holds.
    flags = ["--stage", "autoencoder", "--training.trainable", "^vae/decoder/conv_out", *cluster]
    flags += ["--training.steps", str(steps), "--training.checkpoint-every", "100000"]
    return [start(run_dir, *flags, "--process-id", str(number)) for number in range(2)]


def test_both_stop_after_the_same_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first, second = _start(run_dir, 100_000)
    guard = threading.Timer(600, first.kill)
    guard.start()
    try:
        assert first.stderr is not None
        log = ""
        for line in first.stderr:
            log += line
            if " step 5/" in line:
                second.send_signal(signal.SIGTERM)
                break
        logs = [log + first.communicate(timeout=600)[1], second.communicate(timeout=600)[1]]
    finally:
        guard.cancel()
        first.kill()
        second.kill()
    assert [first.returncode, second.returncode] == [143, 143], "\n".join(log[-2000:] for log in logs)
    found = [re.findall(r"stopped by SIGTERM after step (\d+); the same command goes on", log) for log in logs]
    ((step,), (other,)) = found
    assert step == other and int(step) >= 5
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [step]
    position = json.loads((run_dir / "checkpoints" / step / "data" / "metadata").read_text())
    assert position["next_index"] == 8 * int(step)
