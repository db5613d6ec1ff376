"""Checkpoints with Orbax: one step holds parameters, average, optimizer state, data position and the configuration.

The random numbers are functions of the step and the seed, so that a run that is killed at any point and resumed ends
bit-identical to one that was not (same hardware, same number of devices).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_utils, type_handlers
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.files import remove_unfinished_checkpoints
from dtc_jax.training.position import check_position, data_position
from dtc_jax.training.step import TrainState

logger = logging.getLogger("dtc_jax.train")

SMALLEST_PART = 2**20
"""Bytes below which it does not pay that several devices write a part each of an array that they all hold."""


class CheckpointError(OSError):
    """A checkpoint that could not be written or read; the message is one line."""


class Checkpoints:
    """The checkpoints of one run folder, `RUN/checkpoints/STEP`."""

    def __init__(self, run_dir: Path, keep: int, keep_best: int = 0, best_metric: str = "loss") -> None:
        """Open them, and remove what a killed run left half-written.

        Args:
            run_dir: The run folder.
            keep: How many of the newest are kept.
            keep_best: How many more are kept for their score.
            best_metric: Which score: the lowest `loss`, or the highest of another.
        """
        self._run_dir = run_dir
        self._score = functools.partial(_score, best_metric)
        policies: list[Any] = [preservation_policy.LatestN(keep)]
        if keep_best:
            policies.append(_Best(self._score, keep_best))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            # The policy decides what is kept; without this Orbax does not store the scores.
            best_fn=self._score if keep_best else None,
            enable_async_checkpointing=True,
        )
        # Named here so that metadata can be read before anything is restored.
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=_array_handlers()),
            "config": ocp.JsonCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
        }
        self._keep_best, self._failed = keep_best, False
        folder = (run_dir / "checkpoints").absolute()
        if jax.process_index() == 0:
            # Orbax's own removal fails a later save where a thread of an earlier run in this process still writes.
            remove_unfinished_checkpoints(folder, attempts=20)
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The complete steps, the oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best score, or None where none was evaluated or scores do not count."""
        best = self._manager.best_step() if self._keep_best else None
        # Orbax names one in any case: of none that was evaluated, the newest.
        return best if best is not None and math.isfinite(self._score(self._manager.metrics(best))) else None

    def save(
        self, state: TrainState, config: ExperimentConfig, step: int, scores: Mapping[str, float] | None = None
    ) -> None:
        """Write one step; the copy to disk goes on in the background.

        Args:
            state: After `step` steps.
            config: The experiment.
            step: Its number; one that is there already is left as it is.
            scores: What the rolling evaluation found, if there was one at this step.

        Raises:
            CheckpointError: this or the one before it could not be written.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict()),
            config=ocp.args.JsonSave(dataclasses.asdict(config)),
            data=ocp.args.JsonSave(data_position(config, step)),
        )
        # None would make Orbax warn at every step that is not evaluated.
        metrics = dict(scores or {}) if self._keep_best else None
        try:
            self._manager.save(step, args=items, metrics=metrics)
        except Exception as error:
            raise self._not_written(error) from error

    def check(self) -> None:
        """Notice a failure in the background.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error
        finally:
            self._manager.close()
            if self._failed and jax.process_index() == 0:
                remove_unfinished_checkpoints(Path(self._manager.directory), attempts=20)

    def _not_written(self, error: Exception) -> CheckpointError:
        """One line for whatever went wrong."""
        folder = Path(self._manager.directory)
        # Other files of it may still be on their way to the disk: once more when all is closed.
        self._failed = True
        if jax.process_index() == 0:
            remove_unfinished_checkpoints(folder)
        complete = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
        remains = f"step {max(complete)} is the newest that is complete" if complete else "there is none yet"
        return CheckpointError(
            f"{folder}: a checkpoint could not be written ({reason(error)}); {remains}; "
            "make room there and run the same command again"
        )

    def restore(self, target: TrainState, step: int, config: ExperimentConfig | None = None) -> TrainState:
        """Read one step into the shapes and shardings of `target`.

        What the checkpoint lacks because it is older than the field is zero, or for the moving average the parameters.

        Args:
            target: Shapes, dtypes and shardings; see `abstract_state`.
            step: Which.
            config: The experiment, to refuse a checkpoint of other data; None does not check.

        Raises:
            ConfigError: the checkpoint holds other arrays than the configuration describes, or other data.
            CheckpointError: it cannot be read.
        """
        where = f"{self._manager.directory}/{step}"
        try:
            metadata = self._manager.item_metadata(step)
            saved = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(metadata["state"].tree)}
            position = None
            if (Path(where) / "data").is_dir():
                position = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        except Exception as error:
            raise CheckpointError(f"{where}: cannot be read ({reason(error)})") from error
        if config is not None and position is not None:
            check_position(position, config, step, where)
        fields = {path.split("/")[0] for path in saved}
        wanted = {name: value for name, value in target._asdict().items() if jax.tree.leaves(value)}
        present = {name: value for name, value in wanted.items() if name in fields}
        _check_fit(saved, present, where)
        item = ocp.args.PyTreeRestore(
            item=present, restore_args=checkpoint_utils.construct_restore_args(present), partial_restore=True
        )
        try:
            restored = dict(self._manager.restore(step, args=ocp.args.Composite(state=item))["state"])
        except Exception as error:
            raise CheckpointError(f"{where}: cannot be read ({reason(error)})") from error
        for name, value in wanted.items():
            if name == "ema" and name not in present:
                shardings = jax.tree.map(lambda leaf: leaf.sharding, value)
                copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings)
                restored[name] = copy(restored["params"])
            elif name not in present:
                restored[name] = jax.tree.map(
                    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), value
                )
        return target._replace(**restored)

    def restore_newest(self, target: TrainState, config: ExperimentConfig) -> tuple[TrainState, int]:
        """Read the newest step that can be read.

        One that storage has damaged is named, and moved to `RUN/damaged/STEP` once an older one has been read in its
        place. Several processes do not look further: they would have to agree on what each of them could read.

        Returns:
            The state, and its step.

        Raises:
            ConfigError: see `restore`.
            CheckpointError: none can be read. Nothing is moved then, and training does not start again from nothing.
        """
        damaged: list[tuple[int, CheckpointError]] = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(target, step, config)
            except CheckpointError as error:
                if jax.process_count() > 1:
                    raise CheckpointError(f"{error}; move it away to go on from the one before it") from error
                damaged.append((step, error))
                continue
            for bad, why in damaged:
                aside = self._run_dir / "damaged" / str(bad)
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                (self._run_dir / "checkpoints" / str(bad)).rename(aside)
                logger.warning("%s; moved to %s, going on from step %d", why, aside, step)
            if damaged:
                self._manager.reload()
            return state, step
        raise CheckpointError(
            f"{damaged[0][1] if damaged else self._manager.directory}; no other checkpoint of this run can be read; "
            "restore the folder from a copy, or start again in another --run-dir"
        )


def _score(best_metric: str, scores: Mapping[str, float] | None) -> float:
    """What is higher for a better checkpoint; minus infinity where there is no such figure, or none that is finite."""
    value = (scores or {}).get(best_metric, math.nan)
    good = -value if best_metric == "loss" else value
    return good if math.isfinite(good) else -math.inf


@dataclasses.dataclass
class _Best(preservation_policy.PreservationPolicy):
    """Keeps the `count` checkpoints with the highest finite scores.

    Orbax's own policy fills its places with checkpoints that were not evaluated while there are not enough others.
    """

    score: Callable[[Mapping[str, float] | None], float]
    count: int

    def should_preserve(
        self,
        checkpoints: Sequence[preservation_policy.PolicyCheckpointInfo],
        *,
        context: preservation_policy.PreservationContext,
    ) -> list[bool]:
        """Which of them are kept; of equal ones the newer, as Orbax's best."""
        scores = [self.score(checkpoint.metrics) for checkpoint in checkpoints]
        competing = [index for index, score in enumerate(scores) if math.isfinite(score)]
        best = set(sorted(competing, key=lambda index: scores[index])[-self.count :])
        return [index in best for index in range(len(scores))]


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_fit(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Before Orbax meets them: it would stop in the middle of reading, with pages of warnings."""
    expected = {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(wanted)}
    unknown = [path for path in saved if path not in expected and path.split("/")[0] in wanted]
    # The parameters' names are those that a reader knows.
    for path in sorted([*expected, *unknown], key=lambda path: (not path.startswith("params/"), path)):
        if path not in saved or path not in expected or tuple(saved[path].shape) != expected[path].shape:
            raise ConfigError(
                f"{where}: does not fit this configuration ({path.removeprefix('params/')}); "
                "use another --run-dir, or --init-from it"
            )


def quiet_orbax() -> None:
    """For a command line: leave Orbax's and tensorstore's failures to the errors that reach the caller.

    Orbax logs them with tracebacks as well, and the callbacks of the writes that come after the first failure find
    their event loop closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def reason(error: BaseException) -> str:
    """What went wrong, in a few words: the system's where it is one of its errors."""
    text = " ".join(str(error).split()).strip("'\"") or type(error).__name__
    # TensorStore puts what it knows of the failure behind the message, in no fixed order.
    system = re.search(r"\[os_error_code='(\d+)'\]", text)
    if system is not None:
        return os.strerror(int(system.group(1)))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text if len(text) <= 200 else text[:200] + "..."


def _array_handlers() -> type_handlers.TypeHandlerRegistry:
    """How arrays are written: as Orbax does, but small ones by one device alone.

    Orbax has the devices that hold copies of an array write a part each, and compiles the cutting for every shape and
    device: for hundreds of small arrays that costs far more than it saves.
    """
    arrays = type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SMALLEST_PART)
    return type_handlers.create_type_handler_registry((jax.Array, arrays))


def abstract_state(state: TrainState, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )
