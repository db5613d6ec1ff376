"""Reading what a training run has written so far.

A run folder holds config.json, `frozen/` (a model folder: networks that the run does not change), `checkpoints/STEP`
(Orbax: trained parameters, their moving average, optimizer state) and, once it has finished, `model/` (a model folder
with everything, the moving average in the trained networks' place).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orbax.checkpoint as ocp
from jax.typing import DTypeLike
from orbax.checkpoint import checkpoint_utils

from dtc_jax.config import ExperimentConfig
from dtc_jax.weights.model_folder import (
    CONFIG_FILE,
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
            checkpoint), one checkpoint of a run (`RUN/checkpoints/STEP`: its moving average), or None for the shipped
            model.
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
        return load_config_of(split_step(Path(path))[0])
    return load_config_of(resolve_checkpoint(path))


def is_unfinished_run(folder: Path) -> bool:
    """Whether the folder is a run that has not exported its model yet, or one checkpoint of a run."""
    return split_step(folder)[1] is not None or (
        (folder / "checkpoints").is_dir() and not is_model_folder(folder / "model")
    )


def split_step(path: Path) -> tuple[Path, int | None]:
    """The run folder and the step of `RUN/checkpoints/STEP`; other paths as they are, and None."""
    folder = path.absolute()
    if folder.name.isdigit() and folder.parent.name == "checkpoints" and (folder.parent.parent / CONFIG_FILE).is_file():
        return path.parent.parent if len(path.parts) > 2 else folder.parent.parent, int(folder.name)
    return path, None


def load_run_folder(folder: Path, weights: Literal["ema", "params"] = "ema") -> tuple[ExperimentConfig, Params]:
    """What a run's newest checkpoint holds, with its frozen networks, as numpy arrays.

    Args:
        folder: The run folder, or one of its checkpoints, `RUN/checkpoints/STEP`.
        weights: The moving average of the trained parameters, or the parameters themselves, which is what there is in a
            run without an average.

    Raises:
        ModelFolderError: the run has written no checkpoint yet, or the checkpoint is absent or cannot be read.
    """
    config = load_config_of(split_step(folder)[0])
    if not config.ema.enabled:
        weights = "params"
    step, stored = stored_arrays(folder, weights)
    folder, _ = split_step(folder)
    if step is None:
        raise ModelFolderError(f"{folder}: this run has written no checkpoint yet")
    item = (folder / "checkpoints").absolute() / str(step) / "state"
    with _readable(item.parent), ocp.PyTreeCheckpointer() as reader:
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
        folder: As for `load_run_folder`.
        weights: As for `load_run_folder`.

    Returns:
        The checkpoint's step (None: there is none yet), and {Flax path: something with `shape` and `dtype`}.

    Raises:
        ModelFolderError: the checkpoint is absent or cannot be read.
    """
    folder, step = split_step(folder)
    checkpoints = (folder / "checkpoints").absolute()
    steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise ModelFolderError(f"{checkpoints / str(step)}: no such checkpoint; there is {there}")
    if step is None:
        if not steps:
            return None, {}
        step = steps[-1]
    with _readable(checkpoints / str(step)), ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(checkpoints / str(step) / "state").item_metadata.tree
        return step, dict(tree.get(weights) or tree["params"])


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Whatever Orbax raises on a damaged checkpoint, as one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise ModelFolderError(f"{checkpoint}: cannot be read ({text}); name another checkpoint of the run") from error
