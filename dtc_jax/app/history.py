"""What is kept of one visitor: the scene as it is now, earlier ones to go back to, and the last results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from dtc_jax.app.limits import Limits
from dtc_jax.data.images import InputError

Image8 = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Session:
    """Immutable: every action returns a new one."""

    scene: Image8 | None = None
    """The scene that the results were painted into."""
    earlier: tuple[Image8, ...] = ()
    """Scenes before it, the oldest first."""
    results: tuple[Image8, ...] = ()
    """The last results, of the scene's size."""
    chosen: int = 0
    """Which of them is shown."""


def with_scene(session: Session, scene: Image8) -> Session:
    """A session that is about this scene: another photo than before starts a new history."""
    if session.scene is not None and same_scene(session.scene, scene):
        return replace(session, results=(), chosen=0)
    return Session(scene=scene)


def with_results(session: Session, results: Sequence[Image8]) -> Session:
    """The session after a request."""
    return replace(session, results=tuple(results), chosen=0)


def choose(session: Session, index: int) -> Session:
    """
    Raises:
        InputError: no such result.
    """
    if not 0 <= index < len(session.results):
        raise InputError("result: it is no longer there; make a new one")
    return replace(session, chosen=index)


def use_result(session: Session, limits: Limits) -> Session:
    """The chosen result becomes the scene, and the scene one that can be gone back to.

    Of the earlier scenes the newest are kept: at most `limits.max_undo`, in at most `limits.max_kept_megabytes`, and
    one in any case.

    Raises:
        InputError: there is no result.
    """
    if session.scene is None or not session.results:
        raise InputError("result: there is none yet; place a product first")
    earlier = (*session.earlier, session.scene)[-limits.max_undo :]
    while len(earlier) > 1 and sum(scene.nbytes for scene in earlier) > limits.max_kept_megabytes * 1e6:
        earlier = earlier[1:]
    return Session(scene=session.results[session.chosen], earlier=earlier)


def undo(session: Session) -> Session:
    """The scene before the last `use_result`.

    Raises:
        InputError: there is none.
    """
    if not session.earlier:
        raise InputError("undo: there is no earlier scene")
    return Session(scene=session.earlier[-1], earlier=session.earlier[:-1])


def same_scene(first: Image8, second: Image8) -> bool:
    """Whether two images are one, up to the rounding of a browser's canvas."""
    if first.shape != second.shape:
        return False
    return bool(np.abs(first.astype(np.int16) - second).max() <= 2)
