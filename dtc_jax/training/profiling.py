"""A profile of a few steps, on request: `training.profile_start` and `training.profile_steps`."""

from __future__ import annotations

from pathlib import Path

import jax
from jaxtyping import PyTree

from dtc_jax.config import TrainingConfig


class Profile:
    """Takes one trace, into `RUN/profile`; every process writes its own file."""

    def __init__(self, run_dir: Path, config: TrainingConfig) -> None:
        self._folder = run_dir / "profile"
        self._first, self._last = config.profile_start, config.profile_start + config.profile_steps - 1
        self._running = False

    def before(self, step: int, finished: PyTree) -> None:
        """Start where `step`, counted from 1, is the first.

        Args:
            step: That is about to be dispatched.
            finished: What the steps before make; they are not to be in the trace.
        """
        if self._first and step == self._first:
            jax.block_until_ready(finished)
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, made: PyTree) -> None:
        """Stop where `step` is the last, once the devices have made `made`."""
        if self._running and step == self._last:
            jax.block_until_ready(made)
            self.close()

    def close(self) -> None:
        """Write what has been taken, if a trace is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
