"""The data position that a checkpoint holds: an integer in the endless order of one data set.

The position alone says which samples come next, on any number of processes and workers; the data set's identity says
in which order, so that a run is not resumed on other data unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.run_directory import describe_data_set


@cache
def data_identity(config: ExperimentConfig) -> dict[str, Any]:
    """What decides which sample has which index.

    Raises:
        ConfigError: there is no data set where `data.path` says.
    """
    identity: dict[str, Any] = {"kind": config.data.kind, "seed": config.data.seed}
    if config.data.kind == "records":
        identity |= {"split": config.data.split, **describe_data_set(config)}
        identity.pop("licence", None)
    elif config.data.kind == "product":
        identity |= describe_data_set(config)
    return identity


def data_position(config: ExperimentConfig, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` steps stores: `next_index`, the first sample not used yet, and the identity."""
    return {"next_index": step * config.training.batch_size, **data_identity(config)}


def check_position(stored: Mapping[str, Any], config: ExperimentConfig, step: int, where: str) -> None:
    """Refuse a checkpoint whose data go on otherwise than this configuration would.

    Args:
        stored: What `data_position` gave when the checkpoint was written.
        config: The experiment that is to be resumed.
        step: The checkpoint's step.
        where: The checkpoint, for the message.

    Raises:
        ConfigError: another data set, order or position; the message names the first difference.
    """
    for name, value in data_position(config, step).items():
        if name in stored and stored[name] != value:
            raise ConfigError(
                f"{where}: was written with other data ({name} was {stored[name]}, now {value}); "
                "use another --run-dir, or --init-from it"
            )
