"""What a run says of itself: a readable line now and then, its numbers in metrics.jsonl and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dtc_jax.training.files import write_text

if TYPE_CHECKING:
    from dtc_jax.training.tensorboard import TensorBoard

logger = logging.getLogger("dtc_jax.train")


def open_tensorboard(run_dir: Path, start_step: int) -> TensorBoard:
    """The run's event file."""
    # Here, because its library imports PyTorch where that is installed, which takes seconds.
    from dtc_jax.training.tensorboard import TensorBoard

    return TensorBoard(run_dir / "tensorboard", start_step)


class Progress:
    """Turns metrics into lines; only the first process writes."""

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        start_step: int,
        batch_size: int,
        write: bool,
        flops_share: float | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Open the files.

        Args:
            run_dir: The run folder.
            total_steps: Of the whole run.
            start_step: Steps that are done.
            batch_size: Images per step, over all processes.
            write: Whether this process writes.
            flops_share: The part of all devices' peak that one image per second takes; None shows no MFU.
            tensorboard: Write RUN/tensorboard, too.
        """
        self._path = run_dir / "metrics.jsonl"
        self._total, self._batch_size, self._write = total_steps, batch_size, write
        self._flops_share = flops_share
        self._last_step, self._last_time = start_step, time.perf_counter()
        self._held: tuple[int, Mapping[str, Any]] | None = None
        if write:
            keep_lines(self._path, start_step)
        self._tensorboard = open_tensorboard(run_dir, start_step) if write and tensorboard else None
        self._closing = contextlib.ExitStack()
        self._bar: tqdm[Any] | None = None
        if write and sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", leave=False, dynamic_ncols=True)
            self._closing.enter_context(logging_redirect_tqdm())

    def advance(self) -> None:
        """One more step has been dispatched: the bar on a terminal, which reads nothing from the devices."""
        if self._bar is not None:
            self._bar.update()

    def hold(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keep the metrics of the step that made the count `step` on the devices until the next is dispatched."""
        self._held = step, metrics

    def flush(self) -> dict[str, float]:
        """Fetch and report what is held, the loop's only read from the devices; its numbers, or none."""
        if self._held is None:
            return {}
        (step, metrics), self._held = self._held, None
        numbers = {name: float(value) for name, value in metrics.items()}
        self.report(step, numbers)
        return numbers

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of the step that made the count `step`, the speed since the last line, and the time left."""
        now = time.perf_counter()
        seconds = now - self._last_time
        seconds_per_step = seconds / max(step - self._last_step, 1)
        self._last_step, self._last_time = step, now
        if not self._write:
            return
        images_per_second = self._batch_size / seconds_per_step
        speed = {"images_per_second": round(images_per_second, 2), "seconds": round(seconds, 3)}
        text = f"{images_per_second:.1f} images/s"
        if self._flops_share is not None:
            speed["mfu"] = round(images_per_second * self._flops_share, 4)
            text += f"  MFU {speed['mfu']:.1%}"
        left = timedelta(seconds=round((self._total - step) * seconds_per_step))
        logger.info("step %d/%d  %s  %s  ETA %s", step, self._total, _shown(metrics), text, left)
        self._append({"step": step, **metrics, **speed})
        if self._tensorboard is not None:
            named = {f"train/{name}": value for name, value in metrics.items()}
            self._tensorboard.scalars(step, {**named, **{f"speed/{name}": value for name, value in speed.items()}})

    def report_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Log what the rolling evaluation after `step` steps found."""
        if not self._write:
            return
        logger.info("step %d/%d  held out: %s", step, self._total, _shown(scores))
        named = {f"evaluation/{name}": value for name, value in scores.items()}
        self._append({"step": step, **named})
        if self._tensorboard is not None:
            self._tensorboard.scalars(step, named)

    def report_grid(self, step: int, grid: Image.Image | None) -> None:
        """Show a sample grid in TensorBoard."""
        if self._tensorboard is not None and grid is not None:
            self._tensorboard.image(step, "samples", grid)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave time that is not training (an evaluation, a sample grid, a checkpoint) out of the speed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.skip_time(time.perf_counter() - began)

    def skip_time(self, seconds: float) -> None:
        """Leave `seconds` out of the speed."""
        self._last_time += seconds

    def close(self) -> None:
        """Close what is open."""
        self._closing.close()
        if self._bar is not None:
            self._bar.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):  # everything was written before; a full disk has been reported
                self._tensorboard.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        """Add a line, whole or not at all."""
        line = (json.dumps(record) + "\n").encode()
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            before = os.fstat(file).st_size
            try:
                while line:
                    line = line[os.write(file, line) :]
            except OSError as error:
                os.ftruncate(file, before)
                raise OSError(error.errno, error.strerror, str(self._path)) from None
        finally:
            os.close(file)


def _shown(metrics: Mapping[str, float]) -> str:
    # The counters of skipped steps are news only when they are not zero.
    parts = {name: value for name, value in metrics.items() if value or not name.startswith("nonfinite")}
    return "  ".join(f"{name} {value:.4g}" for name, value in parts.items())


def keep_lines(path: Path, last_step: int) -> None:
    """Drop what a killed run wrote after its last checkpoint: those steps come again, and the last line may be half."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    write_text(path, "".join(kept))
