"""Reading what a training run has written so far.

A run folder holds config.json, `frozen/` (a model folder: networks that the run does not change), `checkpoints/STEP`
(Orbax: trained parameters, their moving average, optimizer state) and, once it has finished, `model/` (a model folder
with everything, the moving average in the trained networks' place).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orbax.checkpoint as ocp
from jax.typing import DTypeLike
from orbax.checkpoint import checkpoint_utils

from dtc_jax.config import ExperimentConfig
from dtc_jax.weights.model_folder import (
    ModelFolderError,
    Params,
    cast_params,
    flatten_params,
    is_model_folder,
    load_config_of,
    load_model_folder,
    resolve_checkpoint,
    unflatten_params,
)


def load_checkpoint(
    path: str | os.PathLike[str] | None = None,
    *,
    dtype: DTypeLike | None = None,
    networks: tuple[str, ...] | None = None,
) -> tuple[ExperimentConfig, Params]:
    """Configuration and parameters of whatever a `--checkpoint` argument names.

    Args:
        path: A model folder, a run folder (finished: its `model/`; unfinished: the moving average of its newest
            checkpoint), or None for the shipped model.
        dtype: Convert floating-point arrays to this type; None keeps the stored one.
        networks: Read these only; None reads all.

    Raises:
        ModelFolderError: nothing of the kind, or it cannot be read.
    """
    if path is not None and is_unfinished_run(Path(path)):
        config, params = load_run_folder(Path(path))
        if networks is not None:
            params = {name: params[name] for name in networks if name in params}
        return config, params if dtype is None else cast_params(params, dtype)
    return load_model_folder(resolve_checkpoint(path), dtype=dtype, networks=networks)


def checkpoint_config(path: str | os.PathLike[str] | None = None) -> ExperimentConfig:
    """The configuration of what `load_checkpoint` would read, without its weights.

    Raises:
        ModelFolderError: nothing of the kind.
    """
    if path is not None and is_unfinished_run(Path(path)):
        return load_config_of(Path(path))
    return load_config_of(resolve_checkpoint(path))


def is_unfinished_run(folder: Path) -> bool:
    """Whether the folder is a run that has not exported its model yet."""
    return (folder / "checkpoints").is_dir() and not is_model_folder(folder / "model")


def load_run_folder(folder: Path, weights: Literal["ema", "params"] = "ema") -> tuple[ExperimentConfig, Params]:
    """What a run's newest checkpoint holds, with its frozen networks, as numpy arrays.

    Args:
        folder: The run folder.
        weights: The moving average of the trained parameters, or the parameters themselves, which is what there is in a
            run without an average.

    Raises:
        ModelFolderError: the run has written no checkpoint yet.
    """
    config = load_config_of(folder)
    if not config.ema.enabled:
        weights = "params"
    step, stored = stored_arrays(folder, weights)
    if step is None:
        raise ModelFolderError(f"{folder}: this run has written no checkpoint yet")
    item = (folder / "checkpoints").absolute() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        wanted = {weights: {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in stored.items()}}
        restored = reader.restore(
            item,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    frozen: Params = {}
    if is_model_folder(folder / "frozen"):
        frozen = flatten_params(load_model_folder(folder / "frozen")[1])
    return config, unflatten_params({**frozen, **restored[weights]})


def stored_arrays(folder: Path, weights: Literal["ema", "params"] = "ema") -> tuple[int | None, dict[str, Any]]:
    """What a run's newest checkpoint holds, by shapes and types alone.

    Args:
        folder: The run folder.
        weights: As for `load_run_folder`.

    Returns:
        The checkpoint's step (None: there is none yet), and {Flax path: something with `shape` and `dtype`}.
    """
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        step = manager.latest_step()
        if step is None:
            return None, {}
        item = manager.directory / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(item).item_metadata.tree
        return step, dict(tree.get(weights) or tree["params"])
