"""The frozen networks whose outputs a data set may bring with it: which they are, and whether they are the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.cached import cache_of
from dtc_jax.data.records import find_data_set
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.params import split_trainable
from dtc_jax.weights.fingerprint import fingerprint
from dtc_jax.weights.model_folder import check_params, flatten_params, resolve_checkpoint
from dtc_jax.weights.run_folder import checkpoint_config, is_unfinished_run, load_checkpoint

logger = logging.getLogger("dtc_jax.train")

NETWORKS: Mapping[str, str] = {"tokens": "reference_encoder", "latents": "vae"}
"""The network behind each entry of `data.cached`."""


def check_frozen(config: ExperimentConfig) -> None:
    """Refuse to cache what changes while it trains.

    Raises:
        ConfigError: a network behind `data.cached` is trained.
    """
    shapes = DiffuseToChoose(config.model).shapes()
    for kind in config.data.cached:
        flat = flatten_params({NETWORKS[kind]: shapes[NETWORKS[kind]]})
        try:
            split_trainable(flat, config.training.trainable)
        except ConfigError:
            continue
        raise ConfigError(
            f"data.cached names {kind}, but training.trainable trains its network, {NETWORKS[kind]}: leave it out of "
            "one of them"
        )


def load_networks(
    config: ExperimentConfig, key: Key[Array, ""], init_from: Sequence[Path] = ()
) -> dict[str, dict[str, Any]]:
    """The networks behind `data.cached` as training would start with them, on the host; see `initial_params`.

    Raises:
        ConfigError: no folder holds one that an earlier stage must have trained.
        ModelFolderError: a folder's network has other names or shapes than the configuration describes.
    """
    wanted = tuple(NETWORKS[kind] for kind in config.data.cached)
    params = DiffuseToChoose(config.model).init(key, wanted)
    found = set()
    for folder in init_from:
        for name, network in _held(folder, wanted).items():
            check_params({name: network}, {name: params[name]}, where=str(folder))
            params[name] = network
            found.add(name)
            logger.info("%s: %s", folder, name)
    for name in wanted:
        if name in found:
            continue
        if config.prerequisites or init_from:
            raise ConfigError(f"no folder of --init-from holds {name}; name the model or run folder that has it")
        logger.warning("%s: random weights, for want of --init-from", name)
    return params


def _held(folder: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """Those of the wanted networks that a model or run folder holds; it need not hold any."""
    checkpoint_config(folder)
    names = tuple(wanted)
    if not is_unfinished_run(folder):
        names = tuple(name for name in wanted if (resolve_checkpoint(folder) / f"{name}.safetensors").is_file())
    return load_checkpoint(folder, dtype=np.float32, networks=names)[1] if names else {}


def check_cached_networks(config: ExperimentConfig, params: PyTree, where: str) -> None:
    """Refuse networks other than those whose outputs the data set holds.

    Args:
        config: The experiment.
        params: Parameters by network, on the host; networks that are not behind `data.cached` do not count.
        where: What they are from, for the message.

    Raises:
        ConfigError: one differs.
    """
    if config.data.kind != "records" or not config.data.cached or config.data.path is None:
        return
    check_frozen(config)
    cache = cache_of(find_data_set(config.data.path))
    if cache is None:
        return
    for name in (NETWORKS[kind] for kind in config.data.cached):
        if name in params and fingerprint(params[name]) != cache.networks.get(name):
            raise ConfigError(
                f"{where}: {name} is not the one whose outputs {config.data.path} holds; start from that one, or cache "
                "again with this one"
            )


def network_fingerprints(params: PyTree) -> dict[str, str]:
    """Of every network in `params`, which must be on the host."""
    return {name: fingerprint(jax.tree.map(np.asarray, tree)) for name, tree in params.items()}
