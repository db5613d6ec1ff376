"""The configuration of a model that published parts make: which experiment they start, at which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dtc_jax.config import (
    ConfigError,
    DataConfig,
    DINOv2Config,
    ExperimentConfig,
    HEDConfig,
    HintConfig,
    LossConfig,
    ModelConfig,
    ReferenceConfig,
    SamplingConfig,
    TrainingConfig,
    VGGConfig,
)
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.starting_parts import CLIP_ENCODERS, vision_config
from dtc_jax.weights.tensors import WeightsError


def starting_config(
    base: Path, unet: Detected, vae: Detected, found: Mapping[str, Detected | None], image_size: int
) -> ExperimentConfig:
    """The configuration.

    Args:
        base: What the message calls them all.
        unet: Of the base.
        vae: The autoencoder.
        found: What else was given, by part.
        image_size: Height and width of the scene in pixels.

    Raises:
        WeightsError: the parts do not go together.
    """
    latents = vae.config.latent_channels
    if unet.config.in_channels not in (latents, 2 * latents + 1) or unet.config.out_channels != latents:
        raise WeightsError(
            f"{unet.source.path}: reads {unet.config.in_channels} channels and returns {unet.config.out_channels}, "
            f"expected {latents} or {2 * latents + 1} and {latents}: the autoencoder has {latents}"
        )
    reference, vgg, hed = found["reference_encoder"], found["vgg"], found["hed"]
    words = found.get("text_encoder")
    encoder = reference.config if reference else DINOv2Config(position_image_size=518)
    hint, tokens = HintConfig(kind="hed" if hed else "reference"), ReferenceConfig()
    if words is not None:
        encoder, hint, tokens = words.config, HintConfig(kind="none"), ReferenceConfig(projection="none")
    if reference is not None and reference.network in CLIP_ENCODERS:
        encoder = vision_config(reference)
        layers = getattr(reference.config, "mapper_layers", ReferenceConfig.mapper_layers)
        tokens = ReferenceConfig(tokens="cls", projection="mapper", mapper_layers=layers)
        if hed is None and found["hint_encoder"] is None:
            hint = HintConfig(kind="none")
    try:
        model = ModelConfig(
            image_size=image_size,
            unet=replace(unet.config, in_channels=2 * latents + 1),
            vae=vae.config,
            reference_encoder=encoder,
            reference=tokens,
            vgg=vgg.config if vgg else VGGConfig(),
            hint=hint,
            hed=hed.config if hed else HEDConfig(),
        )
    except ConfigError as error:
        raise WeightsError(f"{base}: the parts do not go together: {error}") from None
    return ExperimentConfig(model=model) if words is None else _tuned_on_one_product(model)


def _tuned_on_one_product(model: ModelConfig) -> ExperimentConfig:
    """What differs from the defaults where the condition is a prompt; the rest is the experiment's business."""
    return ExperimentConfig(
        name="dreampaint",
        model=model,
        data=DataConfig(kind="product"),
        loss=LossConfig(perceptual_weight=0.0, drop_tokens=0.0),
        training=TrainingConfig(trainable="^unet(/|$)"),
        sampling=SamplingConfig(guidance_scale=7.5),
    )
