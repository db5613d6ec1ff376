"""The same losses on one device, on eight, and in two processes with parameters split over both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dtc_jax.weights.model_folder import flatten_params, load_model_folder
from tests.training.runs import finish, free_port, read_metrics, start

pytestmark = pytest.mark.timeout(900)

FLAGS = ("--training.steps", "4", "--training.checkpoint-every", "4", "--training.sample-every", "0")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    finish(start(run_dir, *FLAGS, "--cpu-devices", "1"))
    return run_dir


def _assert_same_run(run_dir: Path, expected: Path) -> None:
    lines, expected_lines = read_metrics(run_dir), read_metrics(expected)
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines] == [1, 2, 3, 4]
    for line, expected_line in zip(lines, expected_lines, strict=True):
        for name in ("loss", "diffusion", "perceptual"):
            np.testing.assert_allclose(line[name], expected_line[name], rtol=1e-5, err_msg=f"{name}: {line}")
    params = flatten_params(load_model_folder(run_dir / "model")[1])
    expected_params = flatten_params(load_model_folder(expected / "model")[1])
    assert params.keys() == expected_params.keys()
    for path, leaf in expected_params.items():
        # Adam makes a whole step of a gradient that is rounding alone: not more than a few such steps apart.
        np.testing.assert_allclose(params[path], leaf, atol=4e-3, rtol=0, err_msg=path)


def test_eight_devices(one_device: Path, tmp_path: Path) -> None:
    (log,) = finish(start(tmp_path / "run", *FLAGS, "--cpu-devices", "8"))
    assert "on 8 cpu device(s), mesh {'data': 8, 'fsdp': 1}" in log
    _assert_same_run(tmp_path / "run", one_device)


def test_two_processes(one_device: Path, tmp_path: Path) -> None:
    """Four devices each; parameters are split over all eight, so that no process holds all of them."""
    fsdp = ("--training.fsdp-devices", "8", "--training.fsdp-min-size", "64", "--cpu-devices", "4")
    cluster = ("--coordinator", f"localhost:{free_port()}", "--num-processes", "2")
    flags = (*FLAGS, *fsdp, *cluster)
    processes = [start(tmp_path / "run", *flags, "--process-id", str(process)) for process in range(2)]
    for log in finish(*processes):
        assert "on 8 cpu device(s), mesh {'data': 1, 'fsdp': 8}" in log
    _assert_same_run(tmp_path / "run", one_device)
