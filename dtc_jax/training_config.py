"""How a run trains: optimizer, moving average, length, devices and housekeeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT, require


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
    keep_best: int = 0
    """Checkpoints kept for being the best by `best_metric`, beside the newest ones; only steps that were evaluated
    compete."""
    best_metric: Literal["loss", "psnr", "ssim"] = "loss"
    """Figure of the rolling evaluation that decides which checkpoints are best: the lowest loss, or the highest PSNR or
    SSIM."""
    evaluate_every: int = 0
    """Steps between rolling evaluations of the moving average on held-out samples; 0 for none."""
    evaluate_count: int = 64
    """Held-out samples of a rolling evaluation, rounded up to whole batches of `batch_size`."""
    tensorboard: bool = True
    """Write metrics, evaluations and sample grids for TensorBoard, in RUN/tensorboard."""
    profile_start: int = 0
    """First step whose profile is taken, in RUN/profile; 0 for none. Not the first of a start: that one compiles."""
    profile_steps: int = 5
    """How many steps are profiled."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "fsdp_devices", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"training.{name} = {getattr(self, name)} must be at least 1")
        for name in ("evaluate_count", "profile_steps"):
            require(getattr(self, name) >= 1, f"training.{name} = {getattr(self, name)} must be at least 1")
        for name in ("keep_best", "evaluate_every", "profile_start"):
            require(getattr(self, name) >= 0, f"training.{name} = {getattr(self, name)} must be 0 (none) or more")
        evaluated, saved = self.evaluate_every, self.checkpoint_every
        require(
            self.keep_best == 0 or (evaluated > 0 and (evaluated % saved == 0 or saved % evaluated == 0)),
            f"training.keep_best = {self.keep_best} compares evaluated checkpoints: of training.evaluate_every = "
            f"{evaluated} and training.checkpoint_every = {saved}, one must be a multiple of the other",
        )
        require(self.sample_every >= 0, f"training.sample_every = {self.sample_every} must be 0 (none) or more")
        require(
            self.sample_count >= 1 or self.sample_every == 0,
            f"training.sample_count = {self.sample_count} must be at least 1; training.sample_every = 0 draws no grids",
        )
