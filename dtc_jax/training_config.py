"""How a run trains: optimizer, moving average, length, devices and housekeeping."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT, ConfigError, require

ShardingOverrides = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    __pydantic_config__ = STRICT

    learning_rate: float = 1e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """After the warm-up: constant, or a cosine or a line to a hundredth of the peak at the last step."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, on what `weight_decay_mask` matches."""
    max_grad_norm: float | None = 1.0
    """Clip gradients to this global norm; None leaves them."""
    weight_decay_mask: str = "kernel$"
    """Regular expression over parameter paths: what matches is decayed. By default matrices and convolutions, no
    biases, norms, scales or tables."""
    moments_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which both of Adam's moments are kept. bfloat16 halves them, rounded stochastically (rounded to the
    nearest, the second moment would never move: a thousandth of it is less than half a unit in the last place)."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate = {self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps = {self.warmup_steps} must not be negative")
        require(self.weight_decay >= 0, f"optimizer.weight_decay = {self.weight_decay} must not be negative")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} = {value} must be in [0, 1)")
        norm = self.max_grad_norm
        # Below 0 gradients would be climbed, with 0 nothing would move, and NaN would reach the parameters: whether a
        # step is finite is asked before the clipping.
        require(
            norm is None or 0 < norm < math.inf,
            f"optimizer.max_grad_norm = {norm} must be a finite number above 0, or None to leave gradients as they are",
        )
        pattern = self.weight_decay_mask
        require(_is_expression(pattern), f"optimizer.weight_decay_mask: {pattern!r} is not a regular expression")


def _is_expression(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the trainable parameters."""

    __pydantic_config__ = STRICT

    decay: float = 0.9999
    """Decay d; after n updates min(d, (1 + n) / (10 + n)) is used."""
    enabled: bool = True
    """Keep the average; without it the parameters themselves are sampled and exported, and a copy of them is saved."""

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
    """Seed of initialisation, noise, timesteps and dropout, below 2**32."""
    trainable: str = "^(unet|hint_encoder|hint_adapter|fusion|reference_projection|null_tokens)(/|$)"
    """Regular expression over parameter paths: what matches is trained, the rest is frozen."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the networks' arithmetic; parameters, norms, softmax and losses stay in float32."""
    fsdp_devices: int = 1
    """How many devices share each copy of the parameters; 0 for all devices of a TPU slice or GPU node. The batch is
    split over all devices in any case."""
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
    accumulation_steps: int = 1
    """Parts in which each batch goes through the networks, one after the other, before the one update: the same result
    as the whole batch at once, with the activations of a part."""
    remat: Literal["none", "block", "products"] = "none"
    """What of the forward pass is computed again in the backward pass, instead of kept, in the U-Net, the hint encoder,
    the decoder and VGG: nothing; all but the input of each ResNet block and transformer (`block`: least memory, one
    more forward pass); or all but the results of their convolutions and dense layers (`products`; not on CPUs)."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the frozen networks are kept on the devices and in the run folder."""
    max_nonfinite_steps: int = 10
    """A step whose loss or gradient is not finite changes nothing and is counted; this many in a row stop the run."""
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

    slices: int = 0
    """Groups of devices with a slow network between them (TPU slices, GPU nodes), which fsdp_devices stays within; 0
    takes what the devices tell."""
    sharding_overrides: ShardingOverrides = ()
    """Pairs of a regular expression and `whole`, `largest` or `axis=N`: how to split the parameters in whose path it is
    found over fsdp_devices. The first that fits decides; other arrays are split along their largest divisible axis."""

    def __post_init__(self) -> None:
        at_least_one = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in (*at_least_one, "accumulation_steps", "max_nonfinite_steps"):
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
        # Of larger ones JAX takes the lowest 32 bits, and of those past 63 bits none.
        require(0 <= self.seed < 2**32, f"training.seed = {self.seed} must be in [0, 2**32)")
        require(self.fsdp_devices >= 0, f"training.fsdp_devices = {self.fsdp_devices} must be 0 (a slice) or more")
        require(self.slices >= 0, f"training.slices = {self.slices} must be 0 (what the devices tell) or more")
        for pattern, rule in self.sharding_overrides:
            _check_override(pattern, rule)
        require(self.sample_every >= 0, f"training.sample_every = {self.sample_every} must be 0 (none) or more")
        require(
            self.sample_count >= 1 or self.sample_every == 0,
            f"training.sample_count = {self.sample_count} must be at least 1; training.sample_every = 0 draws no grids",
        )
        require(
            self.batch_size % self.accumulation_steps == 0,
            f"training.batch_size = {self.batch_size} is not divisible by training.accumulation_steps = "
            f"{self.accumulation_steps}",
        )


def _check_override(pattern: str, rule: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"training.sharding_overrides: {pattern!r} is not a regular expression: {error}") from None
    require(
        re.fullmatch(r"whole|largest|axis=-?\d+", rule) is not None,
        f"training.sharding_overrides: {rule!r} for {pattern!r} must be whole, largest or axis=N",
    )
