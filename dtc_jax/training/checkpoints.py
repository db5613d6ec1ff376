"""Checkpoints with Orbax: one step holds parameters, average, optimizer state and the configuration.

The data position and the random numbers are functions of the step and the seed, so that a run that is killed at any
point and resumed ends bit-identical to one that was not (same hardware, same number of devices).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run folder, `RUN/checkpoints/STEP`."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(keep), enable_async_checkpointing=True
        )
        # Named here so that metadata can be read before anything is restored.
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            (run_dir / "checkpoints").absolute(), options=options, item_handlers=handlers
        )

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, config: ExperimentConfig, step: int) -> None:
        """Write one step; the copy to disk goes on in the background."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()), config=ocp.args.JsonSave(dataclasses.asdict(config))
        )
        self._manager.save(step, args=items)

    def restore(self, abstract_state: TrainState, step: int) -> TrainState:
        """Read one step into the shapes and shardings of `abstract_state`.

        Raises:
            ConfigError: the checkpoint holds other parameters than the configuration describes.
        """
        fields = self._manager.item_metadata(step)["state"]
        # Counters that older checkpoints do not have begin at zero.
        present = {name: value for name, value in abstract_state._asdict().items() if name in fields}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(present))
        # Before Orbax meets them: it would stop in the middle of reading, with pages of warnings.
        saved = fields["params"]
        wanted = abstract_state.params
        for path in sorted(saved.keys() | wanted.keys()):
            if path not in saved or path not in wanted or tuple(saved[path].shape) != wanted[path].shape:
                raise ConfigError(
                    f"{self._manager.directory}/{step}: does not fit this configuration ({path}); "
                    "use another --run-dir, or --init-from it"
                )
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"{self._manager.directory}/{step}: does not fit this configuration ({first}); use another --run-dir"
            ) from error
        counters: dict[str, Any] = {
            name: jnp.zeros((), jnp.int32, device=getattr(abstract_state, name).sharding)
            for name in ("nonfinite_steps", "nonfinite_in_a_row")
            if name not in present
        }
        return TrainState(**counters, **restored["state"])

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def abstract_state(state: TrainState, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )
