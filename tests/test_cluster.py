"""Which processes belong together, which GPUs each takes, and what it says when the others do not come."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dtc_jax.cluster import (
    ClusterOptions,
    Launched,
    connect,
    launched,
    share_of_gpus,
    tasks_on_node,
    visible_gpus,
    why_nobody_came,
)
from dtc_jax.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
# What SLURM sets in a batch script that does not use srun: the numbers of a first process.
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
TPU_MACHINE = {"TPU_ML_PLATFORM": "JAX"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SRUN, Launched("slurm", 16, 11, 8, 3)),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "15,1"}, Launched("slurm", 16, 11, 1, 3)),
        ({name: value for name, value in SRUN.items() if "PER_NODE" not in name}, Launched("slurm", 16, 11, None, 3)),
        (SBATCH, None),
        # salloc's shell.
        ({"SLURM_NTASKS": "2"}, None),
        (OPEN_MPI, Launched("openmpi", 4, 2, 2, 0)),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Launched("tpu")),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, Launched("tpu")),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Launched("tpu")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
        # A TPU machine of Google Compute Engine: only the metadata server knows of others.
        (TPU_MACHINE, Launched("tpu")),
        ({**TPU_MACHINE, "TPU_SKIP_MDS_QUERY": "1"}, None),
        ({**TPU_MACHINE, "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (KUBERNETES, None),
        ({**KUBERNETES, "JOB_COMPLETION_INDEX": "3"}, Launched("kubernetes", index=3)),
    ],
)
def test_launchers_are_known_by_their_variables(environment: dict[str, str], expected: Launched | None) -> None:
    assert launched(environment) == expected


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [("8(x2),4", 0, 8), ("8(x2),4", 1, 8), ("8(x2),4", 2, 4), ("8(x2),4", 3, None), ("1", 0, 1), ("", 0, None)],
)
def test_tasks_on_node(tasks: str, node: int, expected: int | None) -> None:
    assert tasks_on_node(tasks, node) == expected


@pytest.mark.parametrize(
    ("processes", "index", "gpus", "per_process", "expected"),
    [
        # One process per GPU, all visible to each.
        (8, 3, 8, None, (3,)),
        # One per machine.
        (1, 0, 8, None, tuple(range(8))),
        # Half of the machine each.
        (2, 1, 8, None, (4, 5, 6, 7)),
        # --gpus-per-task=1: each sees its own alone.
        (8, 3, 1, 1, (0,)),
        (8, 3, 1, None, (0,)),
        # --gpus-per-task=4 of two tasks, bound.
        (2, 1, 4, 4, (0, 1, 2, 3)),
        # The same, not bound.
        (2, 1, 8, 4, (4, 5, 6, 7)),
    ],
)
def test_share_of_gpus(
    processes: int, index: int, gpus: int, per_process: int | None, expected: tuple[int, ...]
) -> None:
    assert share_of_gpus(processes, index, gpus, per_process) == expected


def test_gpus_that_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match="8 GPUs cannot be shared by the 3 processes"):
        share_of_gpus(3, 0, 8)


def test_visible_gpus(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == 3
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5"}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert visible_gpus({"ROCR_VISIBLE_DEVICES": "0,1,2,3"}, tmp_path) == 4


class _Initialize:
    """In the place of jax.distributed.initialize: keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, *arguments: object, **options: object) -> None:
        self.calls.append((*arguments, options["local_device_ids"], options["cluster_detection_method"]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    replacement = _Initialize()
    monkeypatch.setattr("jax.distributed.initialize", replacement)
    return replacement.calls


GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, {}, []),
        # The way out, whatever the cluster says.
        ({"num_processes": 1}, SRUN, []),
        ({}, SBATCH, []),
        ({}, {**SRUN, **GPUS}, [(None, 16, 11, (3,), None)]),
        # One process per node takes all of its GPUs, where JAX would take the first.
        (
            {},
            {**SRUN, **GPUS, "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
            | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
            [(None, 2, 1, tuple(range(8)), None)],
        ),
        ({"local_device_ids": (5,)}, {**SRUN, **GPUS}, [(None, 16, 11, (5,), None)]),
        ({}, {**SRUN, **GPUS, "JAX_LOCAL_DEVICE_IDS": "6"}, [(None, 16, 11, None, None)]),
        # Only the address is missing.
        ({"coordinator": "host:1"}, {**OPEN_MPI, **GPUS}, [("host:1", 4, 2, (0, 1, 2, 3), "deactivate")]),
        ({}, {**OPEN_MPI, "JAX_COORDINATOR_ADDRESS": "host:2"}, [("host:2", 4, 2, None, "deactivate")]),
        ({}, {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, [(None, 4, 2, None, None)]),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 1},
            {},
            [("host:1", 2, 1, None, "deactivate")],
        ),
        (
            {"coordinator": "host:1", "num_processes": 4},
            {**KUBERNETES, "JOB_COMPLETION_INDEX": "3"},
            [("host:1", 4, 3, None, "deactivate")],
        ),
    ],
)
def test_what_jax_is_told(
    options: dict,
    environment: dict[str, str],
    expected: list[tuple],
    calls: list[tuple],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dtc_jax.cluster.visible_gpus", lambda env: visible_gpus(env, Path("/nowhere")))
    connect(ClusterOptions(**options), environment)
    assert calls == expected


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({"num_processes": 2}, {}, "go together"),
        ({"coordinator": "host:1", "process_id": 0}, {}, "go together"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, {}, "HOST:PORT"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, {}, "must be from 0 to 1"),
        ({}, OPEN_MPI, "mpi4py"),
        ({}, {**KUBERNETES, "JOB_COMPLETION_INDEX": "3"}, "--num-processes 1 trains alone"),
    ],
)
def test_what_does_not_fit_together(
    options: dict, environment: dict[str, str], message: str, calls: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        connect(ClusterOptions(**options), environment)
    assert calls == []


def test_jax_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(*arguments: object, **options: object) -> None:
        raise ValueError("coordinator_address should be defined.\nand more")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(
        ConfigError, match=r"cannot join the tpu processes: coordinator_address should be defined\.; name"
    ):
        connect(ClusterOptions(), TPU_MACHINE)


def test_why_nobody_came() -> None:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        here = f"localhost:{listener.getsockname()[1]}"
        # Bound, but nobody listens.
        assert f"cannot reach --coordinator {here}" in why_nobody_came(here, 2, 1, 5)
        listener.listen()
        assert "but not all of the 2 processes came" in why_nobody_came(here, 2, 1, 5)
    assert "process 0 waited 5 s for all of the 2 processes" in why_nobody_came(here, 2, 0, 5)
    assert "process 3 could not join the 4 processes" in why_nobody_came(None, 4, 3, 5)


@pytest.mark.parametrize("process", [0, 1])
def test_alone_in_the_end(process: int) -> None:
    """As a process: one line and an end, where JAX alone prints a stack trace and aborts."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    code = (
        "import os; from dtc_jax.cluster import *\n"
        f"connect(ClusterOptions(coordinator='localhost:{port}', num_processes=2, process_id={process}, "
        "connect_timeout=2), {})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("train.py: process") and done.stderr.count("\n") == 1, done.stderr
