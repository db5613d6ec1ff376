"""The full size on a machine without an accelerator: 22 GiB do for fine-tuning on a few pictures, and for tests."""

from dataclasses import replace

from configs.sd15 import CONFIG as SD15
from dtc_jax.config import DataConfig, EMAConfig, LossConfig, OptimizerConfig, TrainingConfig

CONFIG = replace(
    SD15,
    name="sd15_cpu",
    # 1.23 thousand million trained parameters: 4.6 GiB, as much for their gradients and for both moments together.
    optimizer=OptimizerConfig(moments_dtype="bfloat16"),
    ema=EMAConfig(enabled=False),
    # The reference encoder, another 4.2 GiB, is run before: its tokens come with the data.
    data=DataConfig(cached=("tokens",)),
    loss=LossConfig(perceptual_window=256),
    training=TrainingConfig(
        steps=1000,
        batch_size=1,
        compute_dtype="float32",
        frozen_dtype="bfloat16",
        remat="block",
        log_every=1,
        checkpoint_every=500,
        sample_every=0,
    ),
)
