"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dtc_jax.weights.tensor_source import WeightsError


def refuse_existing(target: Path) -> None:
    """Refuse a destination that is there already (a link that leads nowhere, too), or whose name cannot be.

    Raises:
        WeightsError: it exists, or the file system cannot have such a name.
    """
    try:
        if os.path.lexists(target):
            raise WeightsError(f"{target}: exists already; choose another name or remove it")
        target.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise WeightsError(f"{str(target)[:200]}: cannot be made ({error.strerror or error})") from None


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write into, renamed to it at the end; after an error nothing is left.

    Raises:
        WeightsError: `target` exists, or cannot be written.
    """
    refuse_existing(target)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", suffix=".tmp", dir=target.absolute().parent))
    except OSError as error:
        raise WeightsError(f"{target}: cannot be made ({error.strerror or error})") from None
    try:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        yield temporary
        temporary.rename(target)
    except WeightsError as error:
        # Nobody has heard of the temporary folder, and soon it is gone.
        raise WeightsError(str(error).replace(str(temporary), str(target))) from None
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
