"""What the process around the sampler looks after: JAX's settings that belong to commands, and freed memory."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import jax


def enable_compilation_cache() -> Path | None:
    """Keep compiled functions on disk, so that a command's second call starts in seconds.

    The folder is `JAX_COMPILATION_CACHE_DIR` if that is set, else `DTC_JAX_CACHE`, else `dtc_jax` in the user's cache
    folder (`XDG_CACHE_HOME` or ~/.cache). An empty `DTC_JAX_CACHE` turns it off. What takes less than half a second to
    compile is not kept, unless `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` says otherwise.

    Returns:
        The folder; None if there is none, or it cannot be made (a cache is no reason to fail).
    """
    set_by_user = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.environ.get("DTC_JAX_CACHE")
    if set_by_user == "":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(set_by_user or os.path.join(home, "dtc_jax"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


def release_freed_memory() -> None:
    """Give back to the system what this process has freed, where its C library can (glibc); elsewhere nothing happens.

    Compiling the full-size sampler leaves 0.8 GiB in small pieces, which the allocator would keep beside the networks.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
