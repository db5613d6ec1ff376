"""Where a run's numbers come from: revision of the code, versions and devices, written beside the checkpoints."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import dtc_jax


def git_revision() -> str | None:
    """Commit of the checkout that this package is in, `+changes` where it has uncommitted ones; None outside git."""
    folder = Path(dtc_jax.__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def processor_name() -> str:
    """The CPU's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """Revision, versions and devices of this process."""
    device = jax.devices()[0]
    return {
        "git_revision": git_revision(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": processor_name() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def append_provenance(run_dir: Path, start_step: int) -> None:
    """Add a line to `provenance.jsonl`: one for each time that the run was started or resumed."""
    with (run_dir / "provenance.jsonl").open("a") as file:
        file.write(json.dumps({"start_step": start_step, **provenance()}) + "\n")
