"""Parameters before the first step: fresh ones, overlaid with what earlier runs or imports trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Key, PyTree

from dtc_jax.config import ConfigError, ExperimentConfig, PatchAutoencoderConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.hint import replicate_encoder
from dtc_jax.models.inputs import normalize_image
from dtc_jax.models.patch_autoencoder import principal_components
from dtc_jax.training.classifier import init_heads
from dtc_jax.training.source import training_scenes
from dtc_jax.weights.model_folder import check_params
from dtc_jax.weights.run_folder import load_checkpoint

logger = logging.getLogger("dtc_jax.train")

STAGE_NETWORKS = {
    "autoencoder": ("vae",),
    "vgg": ("vgg", "heads"),
    "diffusion": (
        "unet",
        "hint_encoder",
        "hint_adapter",
        "fusion",
        "reference_projection",
        "null_tokens",
        "vae",
        "reference_encoder",
        "vgg",
    ),
}
"""Networks that each stage reads or trains."""


def initial_params(config: ExperimentConfig, key: Key[Array, ""], init_from: Sequence[Path] = ()) -> PyTree:
    """Freshly initialised parameters of the stage's networks, on the host, with those of `init_from` in their place.

    Args:
        config: The experiment.
        key: For the fresh ones.
        init_from: Model or run folders; each brings the networks that it holds and the stage needs, later ones win.

    Raises:
        ConfigError: a folder holds nothing that the stage needs, or its U-Net reads masks of the other polarity.
        ModelFolderError: a folder's network has other names or shapes than the configuration describes.
    """
    wanted = STAGE_NETWORKS[config.stage]
    fresh = DiffuseToChoose(config.model).init(key)
    if config.stage == "vgg":
        fresh["heads"] = init_heads(config.model, key)
    if config.stage == "autoencoder" and isinstance(config.model.vae, PatchAutoencoderConfig):
        for part, layer in patch_components(config).items():
            fresh["vae"][part].update(layer)
    params = {name: fresh[name] for name in wanted if name in fresh}
    loaded_networks: set[str] = set()
    # Of the U-Net that is taken: no tensor's shape shows what 1 means in the mask that it reads.
    unet_from: tuple[Path, str] | None = None
    for folder in init_from:
        stored, loaded = load_checkpoint(folder, dtype=np.float32)
        brought = [name for name in params if name in loaded]
        if not brought:
            raise ConfigError(f"{folder}: holds {', '.join(loaded)}, none of which {config.name} needs")
        for name in brought:
            check_params({name: loaded[name]}, {name: params[name]}, where=str(folder))
            params[name] = loaded[name]
        if "unet" in brought:
            unet_from = folder, stored.model.unet.mask_channel
        loaded_networks.update(brought)
        logger.info("%s: %s", folder, ", ".join(brought))
    if unet_from is not None:
        check_mask_channel(*unet_from, config.model.unet.mask_channel)
    if "unet" in loaded_networks and "hint_encoder" in params and "hint_encoder" not in loaded_networks:
        # The replica is one of the U-Net that training starts from, not of the random one that it replaced.
        params["hint_encoder"] = replicate_encoder(params["unet"], config.model.vae.latent_channels)
        logger.info("hint_encoder: a copy of the loaded unet's encoder and middle")
    return params


def check_mask_channel(folder: Path, stored: str, wanted: str) -> None:
    """Refuse a U-Net that was trained on masks of the other polarity.

    Args:
        folder: Where the U-Net is from.
        stored: `model.unet.mask_channel` there.
        wanted: The same of the experiment.

    Raises:
        ConfigError: they differ.
    """
    if stored != wanted:
        raise ConfigError(
            f"{folder}: its U-Net reads masks in which 1 means {stored}, the experiment's 1 means {wanted}; "
            f"train with --model.unet.mask-channel {stored}"
        )


def patch_components(config: ExperimentConfig, count: int = 256) -> PyTree:
    """The patch autoencoder's linear maps, from the first training scenes."""
    assert isinstance(config.model.vae, PatchAutoencoderConfig)
    return principal_components(np.asarray(normalize_image(training_scenes(config, count))), config.model.vae)
