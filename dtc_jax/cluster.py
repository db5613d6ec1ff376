"""How the processes of one run find each other: SLURM, Open MPI, Cloud TPU, Kubernetes, or flags.

JAX's own runtime connects them (`jax.distributed.initialize`) and detects most clusters. Here is what it leaves open:
how the GPUs of a machine are shared out when a launcher starts one process per machine, or binds GPUs to processes;
Open MPI 5, which it does not recognise; whether there is a cluster at all; and an error of one line when the others do
not come.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import jax

from dtc_jax.config import ConfigError

logger = logging.getLogger("dtc_jax.train")

Environment = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """How this process joins the others; what is not given, the cluster is asked for."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where the cluster does not tell it."""
    num_processes: int | None = None
    """How many processes train together; goes with --coordinator. 1 alone: train alone, whatever the cluster says."""
    process_id: int | None = None
    """Which of them this is, from 0; goes with --coordinator."""
    local_device_ids: tuple[int, ...] = ()
    """GPUs of this machine that this process takes, among those visible to it; by default its share of them."""
    connect_timeout: int = 300
    """Seconds to wait for the other processes before giving up."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life of any process after which all others end."""


@dataclass(frozen=True)
class Launched:
    """What the environment says of processes that a launcher started together; None where only JAX can find out."""

    by: Literal["slurm", "openmpi", "tpu", "kubernetes"]
    count: int | None = None
    """How many there are."""
    index: int | None = None
    """Which of them this is."""
    local_count: int | None = None
    """How many of them are on this machine."""
    local_index: int | None = None
    """Which of those this is."""


def launched(environment: Environment) -> Launched | None:
    """What started several of these processes, or None: then this process runs alone."""
    for detect in (_open_mpi, _slurm, _cloud_tpu, _kubernetes):
        found = detect(environment)
        if found is not None:
            return found
    return None


def _open_mpi(environment: Environment) -> Launched | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    index = _number(environment, "OMPI_COMM_WORLD_RANK")
    if count is None or count < 2 or index is None:
        return None
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE"), _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
    return Launched("openmpi", count, index, *local)


def _slurm(environment: Environment) -> Launched | None:
    count, index = _number(environment, "SLURM_NTASKS"), _number(environment, "SLURM_PROCID")
    if count is None or count < 2 or index is None:
        return None
    # A batch script has the numbers of a process too (0 of all); only srun makes a step of them.
    if "SLURM_STEP_NODELIST" not in environment:
        logger.warning("SLURM has %d tasks, but srun did not start this process: it runs alone", count)
        return None
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    local_count = tasks_on_node(tasks, _number(environment, "SLURM_NODEID") or 0)
    return Launched("slurm", count, index, local_count, _number(environment, "SLURM_LOCALID"))


def tasks_on_node(tasks: str, node: int) -> int | None:
    """The entry for a node in SLURM's list of tasks per node: `8(x2),4` means 8, 8, 4. None if it is not there."""
    counts: list[int] = []
    for part in tasks.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node] if node < len(counts) else None


def _cloud_tpu(environment: Environment) -> Launched | None:
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    # Slices of one host each have one name in the list.
    several = "," in hosts or (_number(environment, "MEGASCALE_NUM_SLICES") or 1) > 1
    # What JAX sets on a machine with TPU chips and libtpu. There, Google's metadata server knows the other hosts; it is
    # not to be asked where TPU_SKIP_MDS_QUERY is set.
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    machine = environment.get("TPU_ML_PLATFORM") == "JAX" and "TPU_SKIP_MDS_QUERY" not in environment
    return Launched("tpu") if "tpu" in platforms and (several or (machine and not hosts)) else None


def _kubernetes(environment: Environment) -> Launched | None:
    if "KUBERNETES_SERVICE_HOST" not in environment or "JOB_COMPLETION_INDEX" not in environment:
        return None
    return Launched("kubernetes", index=_number(environment, "JOB_COMPLETION_INDEX"))


def _number(environment: Environment, name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else None


# --------------------------------------------------------------------------------------------------------------- GPUs


def visible_gpus(environment: Environment, devices: Path = Path("/dev")) -> int:
    """How many GPUs this process may use: what the environment restricts it to, or all of the machine."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in environment:
            entries = [entry.strip() for entry in environment[name].split(",")]
            return len([entry for entry in entries if entry not in ("", "-1", "NoDevFiles")])
    return len([path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])


def share_of_gpus(processes: int, index: int, gpus: int, per_process: int | None = None) -> tuple[int, ...]:
    """Which of the visible GPUs a process takes, one of several on a machine.

    JAX takes GPU number `index` under SLURM and Open MPI: with one process per machine, seven of eight would idle, and
    where the launcher has bound one GPU to each process there is no number `index`.

    Args:
        processes: How many there are on this machine.
        index: Which of them this is.
        gpus: How many GPUs it can see.
        per_process: How many the launcher was told to give each, if it was.

    Raises:
        ConfigError: they cannot be shared out evenly.
    """
    # As many as it was promised, or too few for all: those are its own.
    if processes == 1 or gpus == per_process or gpus < processes:
        return tuple(range(gpus))
    if gpus % processes:
        raise ConfigError(
            f"{gpus} GPUs cannot be shared by the {processes} processes of this machine: start as many processes as "
            "GPUs, or one, or name each one's GPUs with --local-device-ids"
        )
    size = gpus // processes
    return tuple(range(index * size, (index + 1) * size))


def _local_devices(options: ClusterOptions, found: Launched | None, environment: Environment) -> tuple[int, ...] | None:
    if options.local_device_ids:
        return options.local_device_ids
    if found is None or found.local_count is None or found.local_index is None:
        return None
    gpus = visible_gpus(environment)
    if gpus == 0 or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return share_of_gpus(found.local_count, found.local_index, gpus, _number(environment, "SLURM_GPUS_PER_TASK"))


# ---------------------------------------------------------------------------------------------------------- connecting


def connect(options: ClusterOptions, environment: Environment) -> None:
    """Join the other processes: those that the flags name, or those of the cluster that started this one.

    Raises:
        ConfigError: the flags do not fit together, or the cluster does not say enough.
    """
    count, index = options.num_processes, options.process_id
    coordinator = options.coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if count == 1 and coordinator is None and index is None:
        return
    found = launched(environment)
    if found is not None:
        count = found.count if count is None else count
        index = found.index if index is None else index
    elif coordinator is None and count is None and index is None:
        return
    known = coordinator is not None and count is not None and index is not None
    if found is None and not known:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id go together, since no cluster is recognised here"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"--coordinator {coordinator}: must be HOST:PORT of process 0")
    if count is not None and index is not None and not 0 <= index < count:
        raise ConfigError(f"--process-id {index} must be from 0 to {count - 1}, one below --num-processes")
    local_devices = _local_devices(options, found, environment)
    method = "deactivate" if known else _detection_method(found, environment)

    def describe() -> str:
        return why_nobody_came(coordinator, count, index, options.connect_timeout)

    timer = _give_up_after(options.connect_timeout, describe)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=local_devices,
            cluster_detection_method=method,
            # JAX ends the process with a stack trace when its time is over: ours is over first.
            initialization_timeout=options.connect_timeout + 60,
            heartbeat_timeout_seconds=options.heartbeat_timeout,
        )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        by = f"the {found.by} processes" if found is not None else "the other processes"
        raise ConfigError(
            f"cannot join {by}: {str(error).strip().splitlines()[0]}; name them with --coordinator, --num-processes "
            "and --process-id, or train alone with --num-processes 1"
        ) from None
    finally:
        timer.cancel()


def _detection_method(found: Launched | None, environment: Environment) -> str | None:
    """The name of JAX's detection, where it must be told.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    if found is not None and found.by == "openmpi" and "OMPI_MCA_orte_hnp_uri" not in environment:
        # Open MPI 5 does not say where process 0 is: the processes have to talk to each other.
        if importlib.util.find_spec("mpi4py") is None:
            raise ConfigError("Open MPI 5 needs the package mpi4py (pip install mpi4py), or --coordinator HOST:PORT")
        return "mpi4py"
    if found is not None and found.by == "kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise ConfigError(
            "on Kubernetes, give --coordinator and --num-processes (launch/jobset.yaml does), or install the package "
            "kubernetes; --num-processes 1 trains alone"
        )
    return None


def why_nobody_came(coordinator: str | None, count: int | None, index: int | None, seconds: int) -> str:
    """One line on processes that did not connect in time."""
    together = f"{count} processes" if count is not None else "processes"
    if index == 0:
        return (
            f"process 0 waited {seconds} s for all of the {together} to connect"
            f"{f' to {coordinator}' if coordinator else ''}: some did not start or cannot reach it, "
            "or their numbers do not agree"
        )
    if coordinator is None:
        return f"process {index} could not join the {together} within {seconds} s: see the log of process 0"
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return (
            f"process {index} cannot reach --coordinator {coordinator} after {seconds} s ({error}): is process 0 there?"
        )
    return (
        f"process {index} reached --coordinator {coordinator}, but not all of the {together} came within {seconds} s: "
        "do their --num-processes agree, and has each its own --process-id?"
    )


def _give_up_after(seconds: float, describe: Callable[[], str]) -> threading.Timer:
    def give_up() -> None:
        print(f"train.py: {describe()}", file=sys.stderr)
        leave(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    return timer


def leave(code: int) -> NoReturn:
    """End this process at once. A normal exit waits for the other processes, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
