"""Parameters before the first step: fresh ones, overlaid with what earlier runs or imports trained."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Key, PyTree

from dtc_jax.config import (
    AutoencoderTinyConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConfigError,
    DINOv2Config,
    ExperimentConfig,
    ModelConfig,
    PatchAutoencoderConfig,
)
from dtc_jax.data.tokenizer import BYTE_VOCABULARY
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.hint import replicate_encoder
from dtc_jax.models.initialize import initialize
from dtc_jax.models.inputs import normalize_image
from dtc_jax.models.patch_autoencoder import principal_components
from dtc_jax.training.cached_networks import check_cached_networks
from dtc_jax.training.classifier import init_heads
from dtc_jax.training.params import split_trainable
from dtc_jax.training.source import training_scenes
from dtc_jax.weights.model_folder import check_params, flatten_params, unflatten_params
from dtc_jax.weights.prompts import encode_prompts, find_tokenizer
from dtc_jax.weights.run_folder import load_checkpoint
from dtc_jax.weights.starting_parts import is_taesd, taesd

logger = logging.getLogger("dtc_jax.train")

STAGE_NETWORKS = {"autoencoder": ("vae",), "vgg": ("vgg", "heads")}
"""Networks that the stages before the diffusion model read or train."""


def needed_networks(config: ExperimentConfig) -> tuple[str, ...]:
    """The networks that the experiment's objective reads or trains; others are neither loaded nor saved with the run.

    Of the diffusion model these are all, but for the reference encoder where `data.cached` brings its tokens, the
    autoencoder where it brings the latents and no loss decodes with it, and what the perceptual loss alone needs.
    Sample grids are drawn from pictures: with them, reference encoder and autoencoder stay.
    """
    if config.stage in STAGE_NETWORKS:
        return STAGE_NETWORKS[config.stage]
    perceptual, taesd = config.loss.perceptual_weight > 0, config.loss.perceptual_decoder == "taesd"
    kind, sampled = config.model.hint.kind, config.training.sample_every > 0
    hinted, prompted = kind != "none", config.model.prompted
    needed = {
        "unet": True,
        "hint_encoder": hinted,
        "hint_adapter": hinted and kind != "latent",
        "fusion": hinted,
        "reference_projection": not prompted,
        "prompts": prompted,
        "null_tokens": True,
        "vae": "latents" not in config.data.cached or (perceptual and not taesd) or sampled or kind == "latent",
        "reference_encoder": "tokens" not in config.data.cached or sampled,
        "vgg": perceptual,
        "hed": kind == "hed",
        "taesd": perceptual and taesd,
    }
    return tuple(name for name, wanted in needed.items() if wanted)


def initial_params(
    config: ExperimentConfig,
    key: Key[Array, ""],
    init_from: Sequence[Path] = (),
    held: Collection[str] | None = None,
) -> PyTree:
    """Freshly initialised parameters of the stage's networks, on the host, with those of `init_from` in their place.

    Args:
        config: The experiment.
        key: For the fresh ones.
        init_from: Model or run folders; each brings the networks that it holds and the stage needs, later ones win.
            TAESD, where it is needed, may be a folder's autoencoder, or the folder of its two published files.
        held: For a run that has a checkpoint, the networks in its own folder of frozen ones: what is not trained must
            be among these or come from `init_from`.

    Raises:
        ConfigError: a folder holds nothing that the stage needs, or its U-Net reads masks of the other polarity; or no
            folder holds TAESD, which is not trained here, where it is needed; or none holds what a prompt needs; or a
            run that goes on has not had a network that it needs now.
        ModelFolderError: a folder's network has other names or shapes than the configuration describes.
    """
    wanted = needed_networks(config)
    fresh = DiffuseToChoose(config.model).init(key, wanted)
    if config.stage == "vgg":
        fresh["heads"] = init_heads(config.model, key)
    if config.stage == "autoencoder" and isinstance(config.model.vae, PatchAutoencoderConfig):
        for part, layer in patch_components(config).items():
            fresh["vae"][part].update(layer)
    if "taesd" in wanted:
        fresh["taesd"] = initialize({"taesd": DiffuseToChoose(config.model).taesd_shapes()}, key)["taesd"]
    params = {name: fresh.pop(name) for name in wanted if name in fresh}
    loaded_networks: set[str] = set()
    # Of the U-Net that is taken: no tensor's shape shows what 1 means in the mask that it reads.
    unet_from: tuple[Path, str] | None = None
    for folder in init_from:
        if "taesd" in wanted and is_taesd(folder):
            stored, loaded = config, {"taesd": published_taesd(folder)}
        else:
            stored, loaded = load_checkpoint(folder, dtype=np.float32)
            check_cached_networks(config, loaded, str(folder))
        autoencoders = (
            isinstance(stored.model.vae, AutoencoderTinyConfig),
            isinstance(config.model.vae, AutoencoderTinyConfig),
        )
        if "taesd" in wanted and "vae" in loaded and autoencoders == (True, False):
            loaded["taesd"] = loaded.pop("vae")
        for name, why in other_kinds(config.model, stored.model).items():
            if loaded.pop(name, None) is not None:
                logger.info("%s: %s is left out: %s", folder, name, why)
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
    if held is None:
        check_cached_networks(
            config, {name: params[name] for name in params.keys() - loaded_networks}, "random weights"
        )
    else:
        check_held(config, params, {*held, *loaded_networks})
    if unet_from is not None:
        check_mask_channel(*unet_from, config.model.unet.mask_channel)
    if "taesd" in params and "taesd" not in loaded_networks and held is None:
        raise ConfigError(
            "loss.perceptual_decoder = taesd: no folder of --init-from holds TAESD; name one whose autoencoder it is, "
            "or that of taesd_encoder.safetensors and taesd_decoder.safetensors"
        )
    if config.model.prompted and held is None:
        params |= initial_prompts(config, params["reference_encoder"], loaded_networks, init_from)
    if "unet" in loaded_networks and "hint_encoder" in params and "hint_encoder" not in loaded_networks:
        # The replica is one of the U-Net that training starts from, not of the random one that it replaced.
        params["hint_encoder"] = replicate_encoder(params["unet"], config.model.vae.latent_channels)
        logger.info("hint_encoder: a copy of the loaded unet's encoder and middle")
    return params


def check_held(config: ExperimentConfig, params: PyTree, held: Collection[str]) -> None:
    """Refuse to go on with a network that the run has neither frozen nor trained: it would be random.

    Args:
        config: The experiment.
        params: Those that it needs now.
        held: Networks that there are.

    Raises:
        ConfigError: one that is not trained is not among them.
    """
    _, frozen = split_trainable(flatten_params(params), config.training.trainable)
    lacking = {path.split("/")[0] for path in frozen} - set(held)
    if lacking:
        raise ConfigError(
            f"{', '.join(sorted(lacking))}: the run has done without so far, and needs it as it is configured now; "
            "name a folder that holds it with --init-from"
        )


def other_kinds(wanted: ModelConfig, stored: ModelConfig) -> dict[str, str]:
    """Networks of a stored model that are of another kind than the wanted one's, and why.

    Variants start from the same folder: what one lacks, or has of its own, is fresh. A network of the same kind but of
    other sizes is an error instead.
    """
    kinds: dict[str, str] = {}

    def compare(network: str, what: str, one: str, other: str) -> None:
        if one != other:
            kinds[network] = f"the experiment's {what} is {one}, not {other}"

    encoders = [_ENCODERS[type(model.reference_encoder)] for model in (wanted, stored)]
    compare("fusion", "fusion", wanted.fusion.kind, stored.fusion.kind)
    compare("reference_encoder", "reference encoder", *encoders)
    compare("reference_projection", "reference encoder", *encoders)
    compare("reference_projection", "projection", wanted.reference.projection, stored.reference.projection)
    conditions = ["a prompt" if model.prompted else "a reference" for model in (wanted, stored)]
    compare("null_tokens", "condition", *conditions)
    return kinds


_ENCODERS: dict[type, str] = {DINOv2Config: "DINOv2", CLIPVisionConfig: "CLIP", CLIPTextConfig: "CLIP's for texts"}


def initial_prompts(
    config: ExperimentConfig, text_encoder: PyTree, loaded: Collection[str], init_from: Sequence[Path]
) -> dict[str, PyTree]:
    """The prompts' tokens, which stay what the text encoder makes of them now.

    Args:
        config: The experiment; its model has prompts.
        text_encoder: The parameters that training starts with.
        loaded: Networks that came from folders.
        init_from: The folders.

    Raises:
        ConfigError: no folder holds a U-Net to tune, or the text encoder and its tokenizer. Bytes alone need neither.
    """
    encoder = config.model.reference_encoder
    assert isinstance(encoder, CLIPTextConfig)
    if "unet" not in loaded:
        raise ConfigError(
            f"{config.name} tunes a model that can paint already: name its folder with --init-from (docs/variants.md)"
        )
    fresh = "reference_encoder" not in loaded
    if fresh and encoder.vocab_size != BYTE_VOCABULARY:
        raise ConfigError(
            f"{', '.join(map(str, init_from))}: holds no text encoder, which {config.name} needs; make a start that "
            "has one with convert_weights.py import --text-encoder"
        )
    tokenizer = find_tokenizer(config.model, () if fresh else init_from)
    return encode_prompts(config.model, config.data, text_encoder, tokenizer)


def published_taesd(folder: Path) -> PyTree:
    """The parameters of TAESD from its two published files."""
    _, tensors = taesd(folder)
    return unflatten_params({tensor.name: np.asarray(tensor.read(), np.float32) for tensor in tensors})


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
