"""The loop: what it reads from the devices, how often it compiles, how it is stopped, what it says on a full disk."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from dtc_jax.config import ConfigError
from dtc_jax.training import loop
from dtc_jax.training.checkpoints import Checkpoints
from dtc_jax.training.profiling import Profile
from dtc_jax.training.stopping import Stopped, StopRequest
from tests.training.runs import ROOT, read_metrics
from tests.training.small_disk import small_disk
from tests.training.small_run import CONFIG, Source, same, train, use

# Writes that go on after the first that failed find their event loop closed: see `quiet_orbax`.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    return use(Source(), monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a run comes to that nothing has stopped, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(Source(), monkeypatch)
        return train(CONFIG, folder), folder


def _with(**changes: Any) -> Any:
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **changes))


def test_nothing_is_read_but_the_numbers_of_the_line_before(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value that Python sees of an array on a device passes through `_value`: count it."""
    reads: list[tuple[int, ...]] = []
    value = ArrayImpl._value

    def counted(array: Any) -> Any:
        # Arrays that a computation has made; the constants of one that is being traced are not on any device yet.
        reads.append(array.shape)
        return value.fget(array)  # type: ignore[attr-defined]

    monkeypatch.setattr(ArrayImpl, "_value", property(counted))
    monkeypatch.setattr(ArrayImpl, "__array__", lambda array, *args, **kwargs: np.asarray(counted(array), *args))
    steps: list[Any] = []
    place = loop.place

    def remember(*arguments: Any) -> Any:
        steps.append(place(*arguments))
        return steps[-1]

    monkeypatch.setattr(loop, "place", remember)
    at: dict[int, int] = {}
    source.before = lambda step: at.update({step: len(reads)})
    config = _with(steps=14, log_every=4, checkpoint_every=100, tensorboard=True)
    assert float(jax.numpy.ones(())) == 1.0 and len(reads) == 1  # the counter counts
    train(config, tmp_path / "run")

    between = {step: at[step + 1] - at[step] for step in range(1, 13)}
    (line, *_) = read_metrics(tmp_path / "run")
    numbers = len(line) - 1
    assert numbers >= 4
    # The line of step 4 is read once step 5 (counted from 1) has been dispatched, and so on; otherwise nothing.
    assert between == {step: numbers if step in (4, 8, 12) else 0 for step in range(1, 13)}
    (compiled, _, _) = steps[0]
    assert compiled._cache_size() == 1


def test_stopped_on_request(whole: tuple[dict[str, Any], Path], source: Source, tmp_path: Path) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    source.before = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 3") as stopped:
        train(CONFIG, tmp_path / "run")
    assert stopped.value.exit_code == 143
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    # Not a step at which a checkpoint is due.
    assert Checkpoints(tmp_path / "run", 5).steps() == [2, 3]
    assert not (tmp_path / "run" / "model").exists()
    source.before, source.asked = lambda step: None, []
    assert same(train(CONFIG, tmp_path / "run"), whole[0])
    assert source.asked == [3, 4]
    assert read_metrics(tmp_path / "run") == read_metrics(whole[1])


def test_a_signal_after_the_last_step_begins_no_other_stage(
    whole: tuple[dict[str, Any], Path], source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Checkpoints.close

    def close_late(checkpoints: Checkpoints) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", close_late)
    with pytest.raises(Stopped, match="after step 5"):
        train(CONFIG, tmp_path / "run")
    monkeypatch.undo()
    use(source, monkeypatch)
    # The stage itself is complete.
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert same(train(CONFIG, tmp_path / "run"), whole[0])


def test_first_interrupt_is_a_request() -> None:
    with StopRequest() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reached(2)
    assert Stopped(2, stop.signal_number).exit_code == 130


def test_second_interrupt_ends_at_once() -> None:
    code = """
import os, signal, time
from dtc_jax.training.profiling import Profile
from dtc_jax.training.stopping import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.reached(1)
    print("requested", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
    print("not reached")
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT and done.stdout == "requested\n", done.stderr
    assert "with a checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_evaluated_on_the_way(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dtc_jax.train")
    found = iter([3.0, 1.0, 2.0, 9.0])

    def make_evaluation(config: Any, mesh: Any) -> Any:
        return lambda average, frozen: {"loss": next(found)}

    monkeypatch.setattr(loop, "make_evaluation", make_evaluation)
    config = _with(steps=6, checkpoint_every=1, evaluate_every=2, keep_checkpoints=1, keep_best=1)
    train(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run", 1, 1).steps() == [4, 6]
    lines = read_metrics(tmp_path / "run")
    assert [(line["step"], line["evaluation/loss"]) for line in lines if "evaluation/loss" in line] == [
        (2, 3.0),
        (4, 1.0),
        (6, 2.0),
    ]
    assert any(message.endswith("held out: loss 1") for message in caplog.messages)
    assert f"best by loss: {tmp_path / 'run' / 'checkpoints' / '4'}" in caplog.messages


def test_a_disk_that_fills_up(whole: tuple[dict[str, Any], Path], source: Source, tmp_path: Path) -> None:
    """One error, and the last complete checkpoint: the run goes on from it."""
    limit: list[Any] = []

    def fill(step: int) -> None:
        if step == 3:
            while not (tmp_path / "run" / "checkpoints" / "2").is_dir():
                time.sleep(0.01)  # it is written in the background
            limit.append(small_disk(3000))
            limit[0].__enter__()

    source.before = fill
    try:
        with pytest.raises(OSError, match=r"File too large") as caught:
            train(CONFIG, tmp_path / "run")
    finally:
        limit[0].__exit__(None, None, None)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()] == ["2"]
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    source.before = lambda step: None
    # As for the process that would be started: threads of this one may still write where the folder was.
    again = (tmp_path / "run").rename(tmp_path / "again")
    assert same(train(CONFIG, again), whole[0])


def test_run_folder_that_cannot_be_made(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"/proc/run: cannot be written"):
        train(CONFIG, Path("/proc/run"))


def test_profile(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(("start", str(folder))))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(("stop",)))
    source.before = lambda step: events.append(step)
    config = _with(profile_start=2, profile_steps=2)
    train(config, tmp_path / "run")
    assert events == [0, ("start", str(tmp_path / "run" / "profile")), 1, 2, ("stop",), 3, 4]
    # A run that ends within the window writes what it has.
    events.clear()
    profile = Profile(tmp_path / "run", config.training)
    profile.before(2, ())
    profile.close()
    profile.close()
    assert events == [("start", str(tmp_path / "run" / "profile")), ("stop",)]
