"""The whole experiment as frozen, typed, validated dataclasses.

One `ExperimentConfig` describes a run: the networks' sizes, the diffusion process, the data, the objective, the
optimizer, the length of the run and the defaults for sampling. It is stored as JSON inside every checkpoint and model
folder, so that nothing else is needed to load one. Presets of the networks' sizes are in `dtc_jax.presets`; experiments
in `configs/`.
"""

from __future__ import annotations

import dataclasses
import json
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
from dtc_jax.config_base import STRICT, ConfigError, require
from dtc_jax.feature_config import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    HEDConfig,
    InceptionConfig,
    PaintByExampleEncoderConfig,
)
from dtc_jax.model_config import DINOv2Config, FusionConfig, HintConfig, ModelConfig, UNetConfig, VGGConfig

__all__ = [
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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the training samples come from."""

    __pydantic_config__ = STRICT

    kind: Literal["procedural"] = "procedural"
    """`procedural`: the generated virtual try-all world (no files)."""
    seed: int = 0
    """Seed of the data set."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: |target - prediction|^2 + perceptual_weight * VGG(decode(x0_hat), scene)."""

    __pydantic_config__ = STRICT

    perceptual_weight: float = 0.1
    """lambda; 0 leaves decoder and VGG out of the step."""
    perceptual_fraction: float = 1.0
    """Share of the batch, the samples with the least noise, that the perceptual term decodes."""
    outside_weight: float = 1.0
    """Weight of the diffusion loss outside the mask (inside it is 1)."""
    drop_tokens: float = 0.2
    """Probability that a sample's reference tokens are replaced with the null tokens."""
    drop_hint: float = 0.0
    """Probability that a sample's hint is dropped (its fusion skipped)."""
    drop_both: float = 0.0
    """Probability that tokens and hint are dropped together."""
    kl_weight: float = 3e-5
    """Autoencoder stage: weight of the KL term."""
    absolute_weight: float = 0.1
    """Autoencoder stage: weight of the absolute error beside the squared one."""
    stratified_timesteps: bool = True
    """Spread the batch's timesteps evenly over [0, T) (each is still uniform) instead of drawing them independently."""
    timestep_shift: float = 1.0
    """How much denser noisy timesteps are drawn: the median is shift / (1 + shift) of T, 1 is uniform. Above 1 for a
    model that samples in few steps, which leave most of the picture to the noisiest ones."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "outside_weight", "drop_tokens", "drop_hint", "drop_both", "kl_weight"):
            require(getattr(self, name) >= 0, f"loss.{name} = {getattr(self, name)} must not be negative")
        total = self.drop_tokens + self.drop_hint + self.drop_both
        require(total <= 1, f"loss.drop_tokens + drop_hint + drop_both = {total} is more than 1")
        require(self.timestep_shift > 0, f"loss.timestep_shift = {self.timestep_shift} must be above 0")
        require(0 < self.perceptual_fraction <= 1, "loss.perceptual_fraction must be in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    __pydantic_config__ = STRICT

    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine to a hundredth of the peak at the last step."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, on matrices and kernels only (no biases, norms or scales)."""
    max_grad_norm: float | None = 1.0
    """Clip gradients to this global norm; None leaves them."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate = {self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps = {self.warmup_steps} must not be negative")
        require(self.weight_decay >= 0, f"optimizer.weight_decay = {self.weight_decay} must not be negative")


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the trainable parameters."""

    __pydantic_config__ = STRICT

    decay: float = 0.9999
    """Decay d; after n updates min(d, (1 + n) / (10 + n)) is used."""

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"ema.decay = {self.decay} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, size and housekeeping of the run."""

    __pydantic_config__ = STRICT

    steps: int = 100_000
    """Optimizer steps of the whole run."""
    batch_size: int = 64
    """Global batch size, over all devices and processes."""
    seed: int = 0
    """Seed of initialisation, noise, timesteps and dropout."""
    trainable: str = "^(unet|hint_encoder|hint_adapter|fusion|reference_projection|null_tokens)(/|$)"
    """Regular expression over parameter paths: what matches is trained, the rest is frozen."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the networks' arithmetic; parameters, norms, softmax and losses stay in float32."""
    fsdp_devices: int = 1
    """How many devices share each copy of the parameters; the batch is split over all devices in any case."""
    fsdp_min_size: int = 2**16
    """Arrays with fewer elements are kept whole on every device: gathering them costs more than they weigh."""
    log_every: int = 50
    """Steps between lines of metrics."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    sample_every: int = 5000
    """Steps between sample grids; 0 for none."""
    sample_count: int = 8
    """Rows of a sample grid."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "fsdp_devices", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"training.{name} = {getattr(self, name)} must be at least 1")
        require(self.sample_every >= 0, f"training.sample_every = {self.sample_every} must be 0 (none) or more")
        require(
            self.sample_count >= 1 or self.sample_every == 0,
            f"training.sample_count = {self.sample_count} must be at least 1; training.sample_every = 0 draws no grids",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Defaults for sampling with the trained model."""

    __pydantic_config__ = STRICT

    num_inference_steps: int = 40
    """Solver steps."""
    guidance_scale: float = 5.0
    """Classifier-free guidance; 1 turns it off."""
    unconditional: Literal["tokens", "both"] = "tokens"
    """What the unconditional branch lacks: the reference's tokens, or tokens and hint."""
    eta: float = 0.0
    """Noise of DDIM: 0 deterministic, 1 ancestral."""
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    """How the solver's steps are spread over the T noise levels."""
    steps_offset: int = 1
    """Added to leading timesteps; SD1.5's is 1."""

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        require(steps >= 1, f"sampling.num_inference_steps = {steps} must be at least 1")
        require(self.guidance_scale >= 0, f"sampling.guidance_scale = {self.guidance_scale} must not be negative")


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
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen, as all of them)
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
