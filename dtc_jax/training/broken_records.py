"""Records that cannot be used: named in a log, counted, and past a share the end of the run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from dtc_jax.config import ConfigError
from dtc_jax.data.pipeline import BrokenRecord

logger = logging.getLogger("dtc_jax.train")

OnBroken = Callable[[BrokenRecord], None]


def log_broken(record: BrokenRecord) -> None:
    """One warning."""
    logger.warning("broken record replaced: %s %d: %s", record.split, record.number, record.reason)


class BrokenLog:
    """Writes RUN/broken_records.jsonl: one line for each record, also over restarts.

    Each process names what it met: those after the first in a file of their own, because files on shared storage
    cannot be appended to by several.
    """

    def __init__(self, run_dir: Path) -> None:
        suffix = f"-{jax.process_index()}" if jax.process_index() else ""
        self._path = run_dir / f"broken_records{suffix}.jsonl"
        self._lock = threading.Lock()

    def __call__(self, record: BrokenRecord) -> None:
        """Warn of a record, and write it down unless it is there already."""
        log_broken(record)
        line = json.dumps(record._asdict())
        with self._lock:
            if self._path.exists() and line in self._path.read_text().splitlines():
                return
            with self._path.open("a") as file:
                file.write(line + "\n")


class BrokenShare:
    """Counts the samples whose record had to be replaced."""

    def __init__(self, max_share: float, least_samples: int, on_broken: OnBroken) -> None:
        """
        Args:
            max_share: Of the samples; `data.max_broken`.
            least_samples: The share is taken of at least so many samples (an epoch's), so that one broken record among
                the first does not end a run.
            on_broken: Told of each record once.
        """
        self._max_share, self._least_samples, self._on_broken = max_share, least_samples, on_broken
        self._known: set[int] = set()
        self._samples = self._replaced = 0

    def count(self, broken: Sequence[BrokenRecord], samples: int) -> None:
        """Count a batch.

        Raises:
            ConfigError: the share has become too large.
        """
        self._samples += samples
        self._replaced += len(broken)
        for record in broken:
            if record.number not in self._known:
                self._known.add(record.number)
                self._on_broken(record)
        if self._replaced > self._max_share * max(self._samples, self._least_samples):
            raise ConfigError(
                f"data: {len(self._known)} broken records, met {self._replaced} times in {self._samples} samples, are "
                f"more than data.max_broken = {self._max_share:g} allows; the last: {broken[-1].reason}"
            )
