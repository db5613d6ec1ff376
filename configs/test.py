"""The smallest experiment that still has every part; the test suite trains it."""

from dtc_jax import presets
from dtc_jax.config import (
    DiffusionConfig,
    EMAConfig,
    ExperimentConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
)

CONFIG = ExperimentConfig(
    name="test",
    model=presets.test(),
    diffusion=DiffusionConfig(prediction_type="v_prediction"),
    loss=LossConfig(perceptual_fraction=0.5, drop_tokens=0.1, drop_hint=0.1, drop_both=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
    ema=EMAConfig(decay=0.99),
    training=TrainingConfig(
        steps=6,
        batch_size=8,
        compute_dtype="float32",
        log_every=1,
        checkpoint_every=2,
        sample_every=6,
        sample_count=2,
    ),
    sampling=SamplingConfig(num_inference_steps=2, guidance_scale=2.0, unconditional="both"),
)
