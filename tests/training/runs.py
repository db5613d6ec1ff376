"""Runs train.py in processes of its own, and reads what they leave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[2]

FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""The compiler's passes over machine code take longer than these runs do."""


FEW_TRAINED = "^(hint_adapter|fusion|null_tokens|reference_projection)(/|$)"
"""Most of the step's program is the optimizer's and the average's, once for each array that is trained. Training these
alone, gradients still go through every network, and the program compiles in less than half the time."""


ONE_LEVEL = ("--model.unet.block-out-channels", "8", "--model.unet.attention-levels", "True")
"""A U-Net without a lower resolution, for the same reason."""


def start(run_dir: Path, *flags: str, code: str | None = None, whole: bool = False) -> subprocess.Popen[str]:
    """Start `train.py test`, or `code` in its place with the same arguments; smaller, if it need not be the `whole`."""
    if not whole:
        trainable = () if "--training.trainable" in flags else ("--training.trainable", FEW_TRAINED)
        flags = (*ONE_LEVEL, *trainable, *flags)
    inherited = {name: value for name, value in os.environ.items() if name not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    environment = {
        **inherited,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FAST_COMPILE,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    program = [str(ROOT / "train.py")] if code is None else ["-c", code]
    # TensorBoard's library imports PyTorch, which takes seconds.
    return subprocess.Popen(
        [sys.executable, *program, "test", "--run-dir", str(run_dir), "--training.no-tensorboard", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """Wait for processes that must end well; what each wrote to stderr."""
    try:
        logs = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, log in zip(processes, logs, strict=True):
        assert process.returncode == 0, log[-3000:]
    return logs


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without those that tell the time."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds")} for line in lines]


def read_checkpoint(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path: parameters, moving average, optimizer state and step."""
    with ocp.StandardCheckpointer() as checkpointer:
        folder = (run_dir / "checkpoints" / str(step) / "state").absolute()
        # One device, whatever the run had.
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        metadata = checkpointer.metadata(folder).item_metadata
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), metadata.tree)
        state = checkpointer.restore(folder, target)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def read_position(run_dir: Path, step: int) -> dict[str, Any]:
    """The data position of a checkpoint."""
    return json.loads((run_dir / "checkpoints" / str(step) / "data" / "metadata").read_text())
