"""The same samples, losses and sample grids on any number of devices and processes; checkpoints moved between them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtc_jax.weights.model_folder import flatten_params, load_model_folder
from tests.training.runs import finish, free_port, read_metrics, start

# Ten steps with sample grids in up to four processes take minutes; test_same_losses.py is the fast part.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 10
# One sample grid, at the last step: by all devices together.
FLAGS = (
    "--training.steps", str(STEPS), "--training.checkpoint-every", "5", "--training.sample-every", str(STEPS),
    "--training.fsdp-min-size", "256",
)  # fmt: skip


def _train(run_dir: Path, processes: int, devices: int, fsdp: int) -> list[str]:
    """Train in several processes with several devices each; what they logged."""
    flags = (*FLAGS, "--training.fsdp-devices", str(fsdp), "--cpu-devices", str(devices))
    if processes > 1:
        flags += ("--coordinator", f"localhost:{free_port()}", "--num-processes", str(processes))
    numbers = [("--process-id", str(index)) if processes > 1 else () for index in range(processes)]
    return finish(*(start(run_dir, *flags, *number) for number in numbers))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    _train(run_dir, 1, 1, 1)
    return run_dir


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of four devices; parameters are split over all eight, so that no process holds all of them."""
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    for log in _train(run_dir, 2, 4, 8):
        assert "on 8 cpu device(s), mesh {'data': 1, 'fsdp': 8}" in log
    return run_dir


def _assert_same_run(run_dir: Path, expected: Path) -> None:
    lines, expected_lines = read_metrics(run_dir), read_metrics(expected)
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines] == list(range(1, STEPS + 1))
    for line, expected_line in zip(lines, expected_lines, strict=True):
        for name in ("loss", "diffusion", "perceptual"):
            np.testing.assert_allclose(line[name], expected_line[name], rtol=1e-5, err_msg=f"{name}: {line}")
    params = flatten_params(load_model_folder(run_dir / "model")[1])
    expected_params = flatten_params(load_model_folder(expected / "model")[1])
    assert params.keys() == expected_params.keys()
    for path, leaf in expected_params.items():
        # Adam makes a whole step of a gradient that is rounding alone: not more than a few such steps apart.
        np.testing.assert_allclose(params[path], leaf, atol=4e-3, rtol=0, err_msg=path)
    # The grid is drawn by all devices together, of the moving average, and written by one process.
    grid, expected_grid = (
        np.asarray(Image.open(folder / "samples" / f"{STEPS:08d}.png")).astype(int) for folder in (run_dir, expected)
    )
    assert grid.shape == expected_grid.shape and abs(grid - expected_grid).max() <= 2


def test_two_processes(two_processes: Path, one_device: Path) -> None:
    _assert_same_run(two_processes, one_device)


def _back_to_step_5(run_dir: Path, copy: Path) -> Path:
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    for name in ("model", "samples"):
        shutil.rmtree(copy / name)
    return copy


def test_one_process_goes_on_from_two(two_processes: Path, one_device: Path, tmp_path: Path) -> None:
    """A checkpoint that two processes wrote, restored in one with eight devices, split over four and two copies."""
    run_dir = _back_to_step_5(two_processes, tmp_path / "run")
    (log,) = _train(run_dir, 1, 8, 4)
    assert "resumed from step 5" in log and "on 8 cpu device(s), mesh {'data': 2, 'fsdp': 4}" in log
    assert "fsdp" in (run_dir / "checkpoints" / str(STEPS) / "state" / "_sharding").read_text()
    _assert_same_run(run_dir, one_device)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "fsdp"), [(1, 8, 1), (1, 8, 8), (2, 4, 4), (4, 2, 8), (4, 2, 2)])
def test_any_processes_and_devices(processes: int, devices: int, fsdp: int, one_device: Path, tmp_path: Path) -> None:
    _train(tmp_path / "run", processes, devices, fsdp)
    _assert_same_run(tmp_path / "run", one_device)


@pytest.mark.slow
def test_four_processes_go_on_from_one(two_processes: Path, one_device: Path, tmp_path: Path) -> None:
    """2 x 4, then 1 x 8, then 4 x 2."""
    run_dir = _back_to_step_5(two_processes, tmp_path / "one")
    _train(run_dir, 1, 8, 4)
    again = tmp_path / "four"
    shutil.copytree(run_dir, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    shutil.rmtree(again / "model")
    for log in _train(again, 4, 2, 8):
        assert "resumed from step 5" in log
    _assert_same_run(again, one_device)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other(tmp_path: Path) -> None:
    """Within the heartbeat's time, with an error and not by waiting for ever."""
    flags = ("--training.steps", "100000", "--training.sample-every", "0", "--training.checkpoint-every", "100000")
    flags += ("--cpu-devices", "1", "--coordinator", f"localhost:{free_port()}", "--num-processes", "2")
    flags += ("--heartbeat-timeout", "10")
    first, second = (start(tmp_path / "run", *flags, "--process-id", str(index)) for index in range(2))
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            assert first.poll() is None and second.poll() is None
            time.sleep(0.5)
        second.kill()
        _, log = first.communicate(timeout=120)
        assert first.returncode not in (0, None), log
    finally:
        for process in (first, second):
            process.kill()
