"""The files of launch/, as far as they can be run here: shims stand for the schedulers, the processes are real."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import yaml

from dtc_jax.arguments import parse_arguments
from dtc_jax.training.command import Arguments, read_config
from tests.training.runs import free_port

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# Starts a step as SLURM does: two processes, numbered by variables alone.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
assert sys.argv[1] == "--kill-on-bad-exit=1", sys.argv
count = int(os.environ["SLURM_NTASKS"])
nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": f"{{count // nodes}}(x{{nodes}})"}}
def number(index):
    local = count // nodes
    return {{"SLURM_PROCID": index, "SLURM_LOCALID": index % local, "SLURM_NODEID": index // local}}
children = [
    subprocess.Popen(sys.argv[2:], env=os.environ | step | {{k: str(v) for k, v in number(index).items()}})
    for index in range(count)
]
sys.exit(max(abs(child.wait()) for child in children))
"""

# In train.py's place: connects as it does, adds up the processes' numbers, and says which GPUs it would take.
PROBE = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import jax, numpy as np, tyro
from pathlib import Path
from dtc_jax.arguments import parse_arguments
from dtc_jax.training.command import Arguments, read_config
from dtc_jax.cluster import connect
from jax.experimental import multihost_utils
script, name, *rest = sys.argv[1:]
default = Arguments(run_dir=tyro.MISSING, config=read_config(Path("configs") / f"{{name}}.py")[0])
arguments = parse_arguments(Arguments, rest, script, default)
jax.config.update("jax_num_cpu_devices", 1)
initialize, taken = jax.distributed.initialize, []
def recording(*given, local_device_ids, **options):
    taken.extend(local_device_ids or ())
    initialize(*given, local_device_ids=local_device_ids, **options)
jax.distributed.initialize = recording
connect(arguments.cluster, os.environ)
total = multihost_utils.process_allgather(np.int32(jax.process_index())).sum()
# Each process has a file of its own: on a shared output, lines of the collectives' library may run into these.
said = Path(__file__).with_name(f"said-{{jax.process_index()}}")
words = script, jax.process_index(), jax.process_count(), total, *taken, arguments.run_dir
said.write_text(" ".join(map(str, words)))
"""


@pytest.fixture
def shims(tmp_path: Path) -> Path:
    """A folder with `srun`, `gcloud` and `probe`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    gcloud = '#!/bin/bash\nfor word in "$@"; do echo "$word"; done\n'
    for name, text in (("srun", SRUN), ("gcloud", gcloud), ("probe", PROBE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def _launch(script: str, *arguments: str, shims: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_NUM"))}
    environment = {**inherited, "PATH": f"{shims}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        cwd=ROOT,
        # An empty XLA_FLAGS would be replaced by those for GPUs, which a CPU build may not know.
        env={**environment, "XLA_FLAGS": "--xla_backend_optimization_level=0", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _said(shims: Path) -> list[str]:
    """The probes' lines, in the order of their processes."""
    return [file.read_text() for file in sorted(shims.glob("said-*"))]


@pytest.mark.parametrize(
    ("nodes", "gpus", "expected"),
    [("1", "0,1,2,3", ["0 1", "2 3"]), ("2", "0,1,2,3", ["0 1 2 3", "0 1 2 3"]), ("1", "6", ["0", "0"])],
    ids=["two processes share a node", "one process per node", "a GPU bound to each process"],
)
def test_slurm(nodes: str, gpus: str, expected: list[str], shims: Path) -> None:
    """Through JAX's own detection: address, count and number come from SLURM's variables."""
    job = {"SLURM_JOB_ID": "12345", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": nodes, "SLURM_SUBMIT_DIR": str(ROOT)}
    # As sbatch leaves them in the batch script.
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    address = {"JAX_COORDINATOR_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": gpus}
    address["PYTHON"] = str(shims / "probe")
    done = _launch("slurm.sbatch", "test", "--run-dir", "runs/a b", shims=shims, **job, **address)
    assert done.returncode == 0, done.stderr
    assert _said(shims) == [f"train.py {index} 2 1 {expected[index]} runs/a b" for index in range(2)]


def test_one_process_per_gpu(shims: Path) -> None:
    done = _launch(
        "multi_gpu.sh", "test", "--run-dir", "runs/a b", shims=shims, PYTHON=str(shims / "probe"), PROCESSES="2",
        PORT=str(free_port()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert _said(shims) == [f"train.py {index} 2 1 {index} runs/a b" for index in range(2)]


def test_one_process_for_all_gpus(shims: Path) -> None:
    done = _launch("multi_gpu.sh", "test", "--run-dir", "runs/a", shims=shims, PYTHON=str(shims / "probe"))
    assert done.returncode == 0, done.stderr
    assert _said(shims) == ["train.py 0 1 0 runs/a"]


def test_a_process_that_fails_ends_the_others(shims: Path) -> None:
    (shims / "probe").write_text('#!/bin/bash\n[ "${@: -1}" = 1 ] && exit 3\nexec sleep 200\n')
    done = _launch(
        "multi_gpu.sh", "test", "--run-dir", "runs/a", shims=shims, PYTHON=str(shims / "probe"), PROCESSES="3"
    )
    assert done.returncode != 0


def test_tpu_pod(shims: Path) -> None:
    machine = {"TPU": "dtc", "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-256", "RUNTIME": "r"}
    where = ["--project=p", "--zone=z"]

    def words(*arguments: str, **variables: str) -> list[str]:
        done = _launch("tpu_pod.sh", *arguments, shims=shims, **machine, **variables)
        assert done.returncode == 0, done.stderr
        found = done.stdout.splitlines()
        assert found[:3] == ["compute", "tpus", "queued-resources"] and found[4] == "dtc"
        assert set(where) <= set(found)
        return [word for word in found[3:] if word not in where]

    created = ["create", "dtc", "--accelerator-type=v5litepod-256", "--runtime-version=r"]
    assert words("create") == [*created, "--node-id=dtc"]
    assert words("create", SLICES="4", SPOT="yes") == [*created, "--node-count=4", "--node-prefix=dtc", "--spot"]
    everywhere = ["ssh", "dtc", "--node=all", "--worker=all"]
    found = words("run", "sd15", "--run-dir", "/mnt/runs/a b", "--training.trainable", "^(unet)")
    assert found[:-1] == everywhere
    # The remote shell takes it apart as it was given.
    remote = (
        found[-1]
        .removeprefix("--command=")
        .replace("exec .venv/bin/python", "printf '%s\\n'")
        .replace("cd dtc-jax", ":")
    )
    split = subprocess.run(["bash", "-c", remote], capture_output=True, text=True, check=True).stdout.splitlines()
    assert split == ["-u", "train.py", "sd15", "--run-dir", "/mnt/runs/a b", "--training.trainable", "^(unet)"]
    assert words("delete")[:2] == ["delete", "dtc"]
    refused = _launch("tpu_pod.sh", "reboot", shims=shims, **machine)
    assert refused.returncode == 2 and refused.stderr.startswith("usage: ")


def test_jobset() -> None:
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    name = jobset["metadata"]["name"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    experiment, *flags = container["args"]
    flags = [flag.replace("$(JOB_COMPLETION_INDEX)", "3") for flag in flags]
    default = Arguments(run_dir=tyro.MISSING, config=read_config(ROOT / "configs" / f"{experiment}.py")[0])
    arguments = parse_arguments(Arguments, flags, "train.py", default)
    port = container["ports"][0]["containerPort"]
    assert arguments.cluster.coordinator == f"{name}-{replicated['name']}-0-0.{name}:{port}"
    assert arguments.cluster.num_processes == job["parallelism"] == job["completions"]
    assert arguments.cluster.process_id == 3 and job["completionMode"] == "Indexed"
    assert arguments.config.training.fsdp_devices == container["resources"]["limits"]["nvidia.com/gpu"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("script", ["slurm.sbatch", "multi_gpu.sh", "tpu_pod.sh"])
def test_scripts_parse_and_can_be_run(script: str) -> None:
    path = LAUNCH / script
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    assert path.stat().st_mode & stat.S_IXUSR
