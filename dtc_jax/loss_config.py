"""What is minimised: the objectives of the stages and their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT, require


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective: |target - prediction|^2 + perceptual_weight * VGG(decode(x0_hat), scene)."""

    __pydantic_config__ = STRICT

    perceptual_weight: float = 0.1
    """lambda; 0 leaves decoder and VGG out of the step."""
    perceptual_fraction: float = 1.0
    """Share of the batch, the samples with the least noise, that the perceptual term decodes. Chosen in each group of
    neighbouring samples (for 1/4: one in four), which stratified timesteps spread over the noise levels."""
    outside_weight: float = 1.0
    """Weight of the diffusion loss outside the mask (inside it is 1)."""
    drop_tokens: float = 0.2
    """Probability that a sample's reference tokens are replaced with the null tokens."""
    drop_hint: float = 0.0
    """Probability that a sample's hint is dropped (its fusion skipped)."""
    drop_both: float = 0.0
    """Probability that tokens and hint are dropped together."""
    prior_weight: float = 1.0
    """Of a few photos of one product: weight of the loss on pictures of its class, which are half of every batch, so
    that the class is not forgotten (DreamBooth's lambda); 0 leaves them out."""
    kl_weight: float = 3e-5
    """Autoencoder stage: weight of the KL term."""
    absolute_weight: float = 0.1
    """Autoencoder stage: weight of the absolute error beside the squared one."""
    stratified_timesteps: bool = True
    """Spread the batch's timesteps evenly over [0, T) (each is still uniform) instead of drawing them independently."""
    timestep_shift: float = 1.0
    """How much denser noisy timesteps are drawn: the median is shift / (1 + shift) of T, 1 is uniform. Above 1 for a
    model that samples in few steps, which leave most of the picture to the noisiest ones."""
    min_snr_gamma: float | None = None
    """gamma of the min-SNR weight (Hang et al., 2023; theirs is 5): the error of x0 counts min(SNR, gamma), whatever
    the network predicts. None leaves the plain mean squared error of the prediction."""
    perceptual_window: int = 0
    """Side in pixels of the square round the mask that the perceptual term decodes and compares; 0 takes the whole
    picture. A multiple of the autoencoder's factor."""
    perceptual_decoder: Literal["vae", "taesd"] = "vae"
    """What decodes for the perceptual term: the autoencoder, or TAESD, which is many times as fast and comes from a
    model folder that --init-from names (`convert_weights.py import` makes one of its published files)."""
    perceptual_max_timestep: int | None = None
    """Samples of later timesteps, hence with more noise, do not count in the perceptual term; None counts all."""

    def __post_init__(self) -> None:
        weights = ("perceptual_weight", "outside_weight", "prior_weight", "kl_weight", "absolute_weight")
        for name in (*weights, "drop_tokens", "drop_hint", "drop_both"):
            require(getattr(self, name) >= 0, f"loss.{name} = {getattr(self, name)} must not be negative")
        total = self.drop_tokens + self.drop_hint + self.drop_both
        require(total <= 1, f"loss.drop_tokens + drop_hint + drop_both = {total} is more than 1")
        require(self.timestep_shift > 0, f"loss.timestep_shift = {self.timestep_shift} must be above 0")
        require(0 < self.perceptual_fraction <= 1, "loss.perceptual_fraction must be in (0, 1]")
        gamma, latest = self.min_snr_gamma, self.perceptual_max_timestep
        require(gamma is None or gamma > 0, f"loss.min_snr_gamma = {gamma} must be above 0, or None for no weight")
        require(latest is None or latest >= 0, f"loss.perceptual_max_timestep = {latest} must be 0 or more, or None")
        window = self.perceptual_window
        require(window >= 0, f"loss.perceptual_window = {window} must be 0 (the whole picture) or more")
