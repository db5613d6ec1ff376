"""The whole experiment as frozen, typed, validated dataclasses.

One `ExperimentConfig` describes a run: the networks' sizes, the diffusion process, the data, the objective, the
optimizer, the length of the run and the defaults for sampling. It is stored as JSON inside every checkpoint and model
folder, so that nothing else is needed to load one. Presets of the networks' sizes are in `dtc_jax.presets`; experiments
in `configs/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from dtc_jax.autoencoder_config import (
    AutoencoderConfig,
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    PatchAutoencoderConfig,
)
from dtc_jax.config_base import STRICT, ConfigError, require, require_finite
from dtc_jax.data_config import DataConfig
from dtc_jax.feature_config import (
    AlexNetConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    HEDConfig,
    InceptionConfig,
    PaintByExampleEncoderConfig,
)
from dtc_jax.loss_config import LossConfig
from dtc_jax.model_config import (
    DINOv2Config,
    FusionConfig,
    HintConfig,
    ModelConfig,
    ReferenceConfig,
    UNetConfig,
    VGGConfig,
)
from dtc_jax.training_config import EMAConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "AlexNetConfig",
    "AutoencoderConfig",
    "AutoencoderKLConfig",
    "AutoencoderTinyConfig",
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "ConfigError",
    "DINOv2Config",
    "DataConfig",
    "DiffusionConfig",
    "EMAConfig",
    "ExperimentConfig",
    "FusionConfig",
    "HEDConfig",
    "HintConfig",
    "InceptionConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PaintByExampleEncoderConfig",
    "PatchAutoencoderConfig",
    "ReferenceConfig",
    "SamplingConfig",
    "TrainingConfig",
    "UNetConfig",
    "VGGConfig",
    "config_from_json",
    "config_to_json",
    "load_config",
]


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise process."""

    __pydantic_config__ = STRICT

    num_train_timesteps: int = 1000
    """T, the number of noise levels."""
    beta_schedule: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    """Schedule of the betas; SD1.5's is scaled_linear."""
    beta_start: float = 0.00085
    """First beta."""
    beta_end: float = 0.012
    """Last beta."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the U-Net predicts."""

    def __post_init__(self) -> None:
        steps, first, last = self.num_train_timesteps, self.beta_start, self.beta_end
        require(steps >= 1, f"diffusion.num_train_timesteps = {steps} must be at least 1")
        require(
            self.beta_schedule == "cosine" or 0 < first <= last < 1,
            f"diffusion.beta_start = {first} and diffusion.beta_end = {last} need 0 < beta_start <= beta_end < 1",
        )


BoxOutline = Literal["model", "reference"]
"""Who draws the product's outline in a mask that is a box; see `dtc_jax.data.outline`."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Defaults for sampling with the trained model."""

    __pydantic_config__ = STRICT

    num_inference_steps: int = 40
    """Solver steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 turns it off."""
    guidance_rescale: float = 0.0
    """Share of the conditional prediction's standard deviation that guidance gives back; 0 turns it off."""
    guidance_interval: tuple[float, float] | None = None
    """Noise levels low < sigma <= high that are guided, sigma = sqrt((1 - abar) / abar); None guides all."""
    unconditional: Literal["tokens", "both"] = "tokens"
    """What the unconditional branch lacks: the reference's tokens, or tokens and hint."""
    solver: Literal["ddim", "dpmsolver++"] = "ddim"
    """Solver: DDIM, or DPM-Solver++ of second order (multistep, midpoint)."""
    eta: float = 0.0
    """Noise of DDIM: 0 deterministic, 1 ancestral."""
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    """How the solver's steps are spread over the T noise levels."""
    steps_offset: int = 1
    """Added to leading timesteps; SD1.5's is 1."""
    box_outline: BoxOutline = "model"
    """Under a mask that is a box: the model paints all of it, or the reference's outline is stretched into it first."""

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        require(steps >= 1, f"sampling.num_inference_steps = {steps} must be at least 1")
        scale, rescale, eta = self.guidance_scale, self.guidance_rescale, self.eta
        require(0 <= scale < math.inf, f"sampling.guidance_scale = {scale} must be a number of at least 0")
        require(0 <= rescale <= 1, f"sampling.guidance_rescale = {rescale} must be from 0 to 1")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            require(0 <= low < high, f"sampling.guidance_interval = {low} {high} needs 0 <= low < high")
        require(0 <= eta <= 1, f"sampling.eta = {eta} must be from 0 to 1")
        require(eta == 0 or self.solver == "ddim", f"sampling.eta = {eta}: only the solver ddim adds noise")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that defines a run."""

    __pydantic_config__ = STRICT

    name: str = "sd15"
    """Name of the experiment: its file in configs/."""
    stage: Literal["diffusion", "autoencoder", "vgg"] = "diffusion"
    """What is trained: the diffusion model, or one of the frozen networks that it needs."""
    prerequisites: tuple[str, ...] = ()
    """Experiments whose trained networks this one needs; train.py runs them first where no weights are given."""
    model: ModelConfig = ModelConfig()
    """Sizes of the networks."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise process."""
    data: DataConfig = DataConfig()
    """Training samples."""
    loss: LossConfig = LossConfig()
    """Objective."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    ema: EMAConfig = EMAConfig()
    """Moving average of the parameters."""
    training: TrainingConfig = TrainingConfig()
    """Length and housekeeping."""
    sampling: SamplingConfig = SamplingConfig()
    """Defaults for sampling."""

    def __post_init__(self) -> None:
        require_finite(self)
        prompted, kind = self.model.prompted, self.data.kind
        require(
            prompted == (kind == "product") and not (prompted and self.stage != "diffusion"),
            f"data.kind = {kind}, stage = {self.stage}: photos of one product (data.kind = product) are for the stage "
            "diffusion of a model whose model.reference_encoder is a text encoder; other data are for the other models",
        )
        if prompted:
            pattern = self.training.trainable
            for name in ("reference_encoder", "prompts", "null_tokens"):
                require(
                    not _finds(pattern, f"{name}/"),
                    f"training.trainable: {pattern!r} trains {name}, but prompts are encoded once, before training",
                )
        window, factor, size = self.loss.perceptual_window, self.model.vae.factor, self.model.image_size
        require(
            window % factor == 0 and window <= size,
            f"loss.perceptual_window = {window} must be a multiple of {factor}, the autoencoder's factor, and at most "
            f"model.image_size = {size}",
        )
        if self.loss.perceptual_decoder == "taesd":
            vae, taesd = self.model.vae, self.model.taesd
            require(
                (taesd.latent_channels, taesd.factor) == (vae.latent_channels, vae.factor),
                "loss.perceptual_decoder = taesd: model.taesd needs the latent channels and factor of model.vae, "
                f"{vae.latent_channels} and {vae.factor}, not {taesd.latent_channels} and {taesd.factor}",
            )


def _finds(pattern: str, path: str) -> bool:
    """Whether the expression is found in the path; one that is none is refused where parameters are split."""
    try:
        return re.search(pattern, path) is not None
    except re.error:
        return False


_ADAPTER: pydantic.TypeAdapter[ExperimentConfig] = pydantic.TypeAdapter(ExperimentConfig)


def config_to_json(config: ExperimentConfig) -> str:
    """Serialise a configuration; `config_from_json` reads it back equal."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str) -> ExperimentConfig:
    """Read a configuration.

    Raises:
        ConfigError: unknown or missing fields, wrong types or values; the message names the field.
    """
    try:
        return _ADAPTER.validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"config: {where or 'top level'}: {first['msg']}") from None


def load_config(path: Path) -> ExperimentConfig:
    """Read config.json.

    Raises:
        ConfigError: the file is absent or not a configuration.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a model or run folder holds its config.json")
    return config_from_json(path.read_text())
