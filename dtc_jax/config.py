"""The whole experiment as frozen, typed, validated dataclasses.

One `ExperimentConfig` describes a run: the networks' sizes, the diffusion process, the data, the objective, the optimizer,
the length of the run and the defaults for sampling. It is stored as JSON inside every checkpoint and model folder, so that
nothing else is needed to load one. Presets of the networks' sizes are in `dtc_jax.presets`; experiments in `configs/`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

_STRICT: pydantic.ConfigDict = {"extra": "forbid"}


class ConfigError(ValueError):
    """A configuration that cannot work; the message says which field and what to change."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# --------------------------------------------------------------------------------------------------------- networks


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of the denoising U-Net, named after diffusers' `UNet2DConditionModel`; defaults are SD1.5-inpainting's."""

    __pydantic_config__ = _STRICT

    in_channels: int = 9
    """Input channels: noisy latents, mask (1), masked latents, in this order."""
    out_channels: int = 4
    """Output channels: as many as the latents have."""
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each resolution level; each level but the last halves the resolution."""
    layers_per_block: int = 2
    """ResNet blocks per level of the encoder (the decoder has one more)."""
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    """Which levels have a spatial transformer after every ResNet block (the middle always has one)."""
    num_attention_heads: int = 8
    """Attention heads at every level (diffusers calls this `attention_head_dim` in SD1.5's config)."""
    cross_attention_dim: int = 768
    """Width of the conditioning tokens."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm."""

    def __post_init__(self) -> None:
        _require(
            len(self.attention_levels) == len(self.block_out_channels),
            "unet.attention_levels needs one entry per level of unet.block_out_channels",
        )
        for channels in self.block_out_channels:
            _require(
                channels % self.norm_num_groups == 0,
                f"unet.block_out_channels: {channels} is not divisible by unet.norm_num_groups = {self.norm_num_groups}",
            )
            _require(
                channels % self.num_attention_heads == 0,
                f"unet.block_out_channels: {channels} is not divisible by "
                f"unet.num_attention_heads = {self.num_attention_heads}",
            )

    @property
    def downsampling(self) -> int:
        """By how much the latents' height and width must be divisible."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """Sizes of the variational autoencoder, named after diffusers' `AutoencoderKL`; defaults are SD1.5's."""

    __pydantic_config__ = _STRICT

    kind: Literal["kl"] = "kl"
    """Tells the kinds of autoencoder apart in config.json."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 4
    """Channels of the latents."""
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each level; each level but the last halves the resolution."""
    layers_per_block: int = 2
    """ResNet blocks per level of the encoder (the decoder has one more)."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm."""
    mid_block_add_attention: bool = True
    """One single-head self-attention in the middle of encoder and decoder."""
    scaling_factor: float = 0.18215
    """Latents are multiplied by this, so that their standard deviation is about one."""

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            _require(
                channels % self.norm_num_groups == 0,
                f"vae.block_out_channels: {channels} is not divisible by vae.norm_num_groups = {self.norm_num_groups}",
            )

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class PatchAutoencoderConfig:
    """Sizes of the tiny model's autoencoder: a linear map of patches, corrected by convolutions at the latents' size.

    At a few hundred thousand parameters it keeps more than an `AutoencoderKL` of the same cost (docs/architecture.md).
    """

    __pydantic_config__ = _STRICT

    kind: Literal["patch"] = "patch"
    """Tells the kinds of autoencoder apart in config.json."""
    in_channels: int = 3
    """Channels of the image."""
    latent_channels: int = 8
    """Channels of the latents."""
    patch_size: int = 4
    """Side of a patch in pixels: one latent place."""
    hidden_channels: int = 64
    """Width of the convolutions."""
    num_blocks: int = 2
    """Residual blocks of two convolutions, in the encoder and in the decoder."""
    scaling_factor: float = 1.0
    """Latents are multiplied by this, so that their standard deviation is about one."""

    @property
    def factor(self) -> int:
        """Pixels per latent, along each side."""
        return self.patch_size


AutoencoderConfig = AutoencoderKLConfig | PatchAutoencoderConfig
"""Either autoencoder; they share encode, decode and scaling."""


@dataclass(frozen=True, kw_only=True)
class DINOv2Config:
    """Sizes of the reference encoder, named after transformers' `Dinov2Config`; defaults are ViT-g/14's at 224 pixels."""

    __pydantic_config__ = _STRICT

    image_size: int = 224
    """Height and width of the reference as the encoder sees it; the position table has (image_size / patch_size)^2 + 1 rows."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    hidden_size: int = 1536
    """Width of the tokens."""
    num_hidden_layers: int = 40
    """Transformer blocks."""
    num_attention_heads: int = 24
    """Attention heads."""
    mlp_ratio: int = 4
    """Width of the MLP over the width of the tokens (SwiGLU takes 2/3 of it, rounded up to a multiple of 8)."""
    use_swiglu_ffn: bool = True
    """SwiGLU (ViT-g) instead of a GELU MLP (S, B, L)."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        _require(
            self.image_size % self.patch_size == 0,
            f"reference_encoder.image_size = {self.image_size} is not divisible by patch_size = {self.patch_size}",
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"reference_encoder.hidden_size = {self.hidden_size} is not divisible by num_attention_heads",
        )

    @property
    def num_tokens(self) -> int:
        """CLS token and patch tokens together."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """Sizes of the perceptual loss's network; defaults are VGG-19's (Simonyan and Zisserman, 2015, table 1, E)."""

    __pydantic_config__ = _STRICT

    block_channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Channels of each block of 3x3 convolutions."""
    convolutions_per_block: tuple[int, ...] = (2, 2, 4, 4, 4)
    """Convolutions in each block; blocks are separated by 2x2 max pooling."""

    def __post_init__(self) -> None:
        _require(
            len(self.block_channels) == len(self.convolutions_per_block),
            "vgg.block_channels and vgg.convolutions_per_block need the same length",
        )


@dataclass(frozen=True, kw_only=True)
class HintConfig:
    """The hint: the reference's pixels stitched into the mask, and the path that reads them (paper 3.2)."""

    __pydantic_config__ = _STRICT

    kind: Literal["reference", "none"] = "reference"
    """`reference`: the stitched reference; `none`: no hint path at all (that is Paint by Example)."""
    fit: Literal["contain", "stretch"] = "contain"
    """How the reference fills the largest rectangle inside the mask: aspect kept and centred, or stretched."""
    trim: bool = True
    """Cut the white or transparent margin off the reference before stitching."""
    adapter_channels: tuple[int, ...] = (16, 32, 96)
    """Channels of the adapter's first convolutions; a last one goes to the latents' channels (paper: four layers)."""
    time: Literal["timestep", "fixed"] = "timestep"
    """`timestep`: the hint encoder gets t like the encoder that it replicates; `fixed`: always t = 0, so that its
    features are one pass for all sampling steps."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How hint features enter the main U-Net."""

    __pydantic_config__ = _STRICT

    kind: Literal["film"] = "film"
    """`film`: (1 + gamma(h)) * x + beta(h) on every skip and the middle (paper 3.2)."""
    pooled: bool = False
    """One gamma and beta per channel from the average-pooled hint feature (the FiLM paper) instead of one per place."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every network of Diffuse to Choose; defaults are the full SD1.5 size."""

    __pydantic_config__ = _STRICT

    image_size: int = 512
    """Height and width of scene, mask and hint in pixels."""
    unet: UNetConfig = UNetConfig()
    """Main U-Net; the hint encoder is a replica of its encoder and middle block."""
    vae: AutoencoderConfig = AutoencoderKLConfig()
    """Autoencoder between pixels and latents."""
    reference_encoder: DINOv2Config = DINOv2Config()
    """Encoder of the reference photo into tokens."""
    vgg: VGGConfig = VGGConfig()
    """Network of the perceptual loss."""
    hint: HintConfig = HintConfig()
    """What the hint is."""
    fusion: FusionConfig = FusionConfig()
    """How the hint modulates the U-Net."""

    def __post_init__(self) -> None:
        _require(
            self.unet.in_channels == 2 * self.vae.latent_channels + 1,
            f"unet.in_channels = {self.unet.in_channels} must be 2 * vae.latent_channels + 1 "
            f"= {2 * self.vae.latent_channels + 1} (noisy latents, mask, masked latents)",
        )
        _require(
            self.unet.out_channels == self.vae.latent_channels,
            f"unet.out_channels = {self.unet.out_channels} must equal vae.latent_channels = {self.vae.latent_channels}",
        )
        step = self.vae.factor * self.unet.downsampling
        _require(self.image_size % step == 0, f"model.image_size = {self.image_size} is not divisible by {step}")

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.image_size // self.vae.factor


# ---------------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise process."""

    __pydantic_config__ = _STRICT

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

    __pydantic_config__ = _STRICT

    kind: Literal["procedural"] = "procedural"
    """`procedural`: the generated virtual try-all world (no files)."""
    seed: int = 0
    """Seed of the data set."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: |target - prediction|^2 + perceptual_weight * VGG(decode(x0_hat), scene)."""

    __pydantic_config__ = _STRICT

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

    def __post_init__(self) -> None:
        total = self.drop_tokens + self.drop_hint + self.drop_both
        _require(total <= 1, f"loss.drop_tokens + drop_hint + drop_both = {total} is more than 1")
        _require(0 < self.perceptual_fraction <= 1, "loss.perceptual_fraction must be in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    __pydantic_config__ = _STRICT

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


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the trainable parameters."""

    __pydantic_config__ = _STRICT

    decay: float = 0.9999
    """Decay d; after n updates min(d, (1 + n) / (10 + n)) is used."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, size and housekeeping of the run."""

    __pydantic_config__ = _STRICT

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
            _require(getattr(self, name) >= 1, f"training.{name} = {getattr(self, name)} must be at least 1")
        _require(self.sample_every >= 0, f"training.sample_every = {self.sample_every} must be 0 (none) or more")
        _require(
            self.sample_count >= 1 or self.sample_every == 0,
            f"training.sample_count = {self.sample_count} must be at least 1; training.sample_every = 0 draws no grids",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Defaults for sampling with the trained model."""

    __pydantic_config__ = _STRICT

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


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that defines a run."""

    __pydantic_config__ = _STRICT

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
