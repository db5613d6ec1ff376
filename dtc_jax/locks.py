"""A folder that one process works in at a time."""

from __future__ import annotations

import fcntl
import logging
from typing import IO

logger = logging.getLogger("dtc_jax")


def take_lock(file: IO[str]) -> bool:
    """Take an open file's lock, which goes with the file or the process; False where another process has it.

    On a file system that knows no locks nobody is kept out: that is no reason not to work there, and is said.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s: cannot be locked (%s): see to it that nothing else works in its folder", file.name, error)
    return True
