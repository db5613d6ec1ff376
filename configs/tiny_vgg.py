"""The tiny model's VGG, trained to read the generated world's own labels: the features of its perceptual loss."""

from dtc_jax import presets
from dtc_jax.config import EMAConfig, ExperimentConfig, OptimizerConfig, TrainingConfig

CONFIG = ExperimentConfig(
    name="tiny_vgg",
    stage="vgg",
    model=presets.tiny(),
    optimizer=OptimizerConfig(learning_rate=5e-4, schedule="cosine", warmup_steps=100, weight_decay=1e-4),
    ema=EMAConfig(decay=0.99),
    training=TrainingConfig(
        steps=2500, batch_size=32, trainable="^(vgg|heads)/", compute_dtype="float32", checkpoint_every=500
    ),
)
