"""What a run says of itself: one readable line now and then, and every line's numbers in metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

logger = logging.getLogger("dtc_jax.train")


class Progress:
    """Turns metrics into lines; only the first process writes."""

    def __init__(self, run_dir: Path, total_steps: int, start_step: int, batch_size: int, write: bool) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._total, self._batch_size, self._write = total_steps, batch_size, write
        self._last_step, self._last_time = start_step, time.perf_counter()
        if write:
            keep_lines(self._path, start_step)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of the step that made the count `step`, the speed since the last line, and the time left."""
        now = time.perf_counter()
        seconds = now - self._last_time
        seconds_per_step = seconds / max(step - self._last_step, 1)
        self._last_step, self._last_time = step, now
        if not self._write:
            return
        images_per_second = self._batch_size / seconds_per_step
        left = timedelta(seconds=round((self._total - step) * seconds_per_step))
        parts = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("step %d/%d  %s  %.1f images/s  ETA %s", step, self._total, parts, images_per_second, left)
        speed = {"images_per_second": round(images_per_second, 2), "seconds": round(seconds, 3)}
        record = {"step": step, **metrics, **speed}
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def skip_time(self, seconds: float) -> None:
        """Leave time that was not training (a sample grid, a checkpoint) out of the speed."""
        self._last_time += seconds


def keep_lines(path: Path, last_step: int) -> None:
    """Drop what a killed run wrote after its last checkpoint: those steps come again, and the last line may be half."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    scratch = path.with_suffix(".jsonl.tmp")
    scratch.write_text("".join(kept))
    scratch.replace(path)
