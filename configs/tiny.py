"""The shipped model: Diffuse to Choose at 64 pixels on the generated world, about nine million parameters."""

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
    name="tiny",
    prerequisites=("tiny_autoencoder", "tiny_vgg"),
    model=presets.tiny(),
    diffusion=DiffusionConfig(prediction_type="v_prediction"),
    loss=LossConfig(
        perceptual_weight=0.1,
        perceptual_fraction=0.25,
        outside_weight=0.1,
        drop_tokens=0.05,
        drop_hint=0.05,
        drop_both=0.05,
        # Sampled in few steps, of which the first, from pure noise, decides most of the picture.
        timestep_shift=3.0,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=100, weight_decay=1e-2),
    ema=EMAConfig(decay=0.999),
    training=TrainingConfig(
        steps=7000,
        batch_size=32,
        # The reference encoder is small and has no pretrained weights: it learns with the rest.
        trainable="^(unet|hint_encoder|hint_adapter|fusion|reference_projection|null_tokens|reference_encoder)(/|$)",
        compute_dtype="float32",
        checkpoint_every=500,
        sample_every=1000,
    ),
    # One step, the mean of what it may be: what so short a training leaves uncertain, more steps fill with noise.
    sampling=SamplingConfig(
        num_inference_steps=1, guidance_scale=1.25, unconditional="both", timestep_spacing="trailing"
    ),
)
