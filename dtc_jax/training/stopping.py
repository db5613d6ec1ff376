"""Stopping on request: SIGTERM (a preemption, a time limit) and Ctrl-C end a run after a step, with a checkpoint.

Several processes must stop at the same step, or those that go on wait for ever in a collective. JAX's preemption
service, which listens for SIGTERM once `jax.distributed` is connected, makes them agree on one.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop, and did; its newest checkpoint is of the step that it stopped at."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.step = step
        self.exit_code = 128 + signal_number
        """What a shell reports for the signal: 143 for SIGTERM, 130 for Ctrl-C. Not 0: a scheduler must not take the
        run for finished."""


class StopRequest:
    """While entered, the first SIGTERM or Ctrl-C is a request that the loop asks for; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal_number = int(signal.SIGTERM)
        """Which signal it was; SIGTERM where another process received it."""
        self._requested = False
        self._together = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python hands signals to the main thread only; a run in another one is stopped by whoever started it.
        if threading.current_thread() is threading.main_thread():
            # With several processes SIGTERM is the preemption service's.
            numbers = [signal.SIGINT] if self._together else [signal.SIGINT, signal.SIGTERM]
            self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        first, self._requested = not self._requested, True
        self.signal_number = number
        # Not the logger: the signal may have come while that was writing.
        os.write(2, b"stopping after this step, with a checkpoint (Ctrl-C again: at once, without one)\n")
        if self._together and first:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def unanswered(self) -> bool:
        """Whether a signal came too late for `reached`. Of several processes' the next stage's first step learns."""
        return self._requested and not self._together

    def reached(self, step: int) -> bool:
        """Whether to stop now, after `step` steps. Every process asks after every step, and gets the same answer."""
        if self._together:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested
