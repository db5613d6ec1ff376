"""A place in the program that no process leaves before all have reached it."""

from __future__ import annotations

from orbax.checkpoint.multihost import get_barrier_sync_fn


def wait_for_all(what: str, seconds: float = 3600.0) -> None:
    """Wait until every process has come this far; one process alone goes on.

    The coordination service is asked. A collective of the devices would not do: the first one of a program connects the
    processes, and on CPUs gives up when another comes half a minute later, as may be after minutes of compiling.

    Args:
        what: Name of the place; each is passed once.
        seconds: How long to wait.

    Raises:
        jax.errors.JaxRuntimeError: another process ended, or did not come in time.
    """
    barrier = get_barrier_sync_fn()
    if barrier is not None:
        barrier(key=what, timeout_ms=int(1000 * seconds))
