"""The paper's sizes and settings: SD1.5 inpainting, DINOv2 ViT-g/14, VGG-19 at 512 pixels, AdamW at a constant 1e-5."""

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, TrainingConfig

# Meant to start from pretrained networks (--init-from): from random weights this takes a text-to-image budget.
CONFIG = ExperimentConfig(
    name="sd15",
    model=presets.sd15(),
    training=TrainingConfig(steps=100_000, batch_size=64, checkpoint_every=1000, sample_every=5000),
)
