"""Whether all processes see one run folder: each writes its own part of every checkpoint."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dtc_jax.config import ConfigError


def check_local_path(run_dir: Path) -> None:
    """Refuse an address of a bucket, which would become a folder of a strange name.

    Raises:
        ConfigError: says what to do.
    """
    # Path has made one slash of two.
    if re.match(r"^[a-z][a-z0-9+.-]+:/", str(run_dir)):
        address = str(run_dir).replace(":/", "://", 1)
        raise ConfigError(
            f"--run-dir {address}: must be a folder; mount the bucket (Cloud Storage FUSE, Mountpoint for S3) and name "
            "the folder"
        )


def check_shared_folder(run_dir: Path, wait: float = 20.0) -> None:
    """Make the run folder and see that every process finds in it what process 0 has put there.

    Args:
        run_dir: The run folder.
        wait: Seconds that a network file system may take to show a new file.

    Raises:
        ConfigError: on every process alike, if one does not.
    """
    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    mark = run_dir / f".shared-{token}"
    if first:
        # Where it cannot, every process is to say so.
        with contextlib.suppress(OSError):
            run_dir.mkdir(parents=True, exist_ok=True)
            mark.touch()
    multihost_utils.sync_global_devices("mark written")
    until = time.monotonic() + (0 if first else wait)
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(0.2)
    everyone = np.asarray(multihost_utils.process_allgather(np.int32(seen)))
    if first:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
    if not everyone.all():
        blind = [int(index) for index in np.flatnonzero(everyone.reshape(-1) == 0)]
        if 0 in blind:
            raise ConfigError(f"--run-dir {run_dir}: process 0 cannot write there")
        raise ConfigError(
            f"--run-dir {run_dir}: process {', '.join(map(str, blind))} does not see what process 0 writes there; the "
            "run folder must be on storage that all machines share, under one name"
        )
