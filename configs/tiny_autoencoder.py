"""The tiny model's autoencoder, trained on the generated world: factor 4, 12 channels."""

from dtc_jax import presets
from dtc_jax.config import EMAConfig, ExperimentConfig, LossConfig, OptimizerConfig, TrainingConfig

CONFIG = ExperimentConfig(
    name="tiny_autoencoder",
    stage="autoencoder",
    model=presets.tiny(),
    optimizer=OptimizerConfig(learning_rate=6e-4, schedule="cosine", warmup_steps=100, weight_decay=0.0),
    loss=LossConfig(kl_weight=5e-5, absolute_weight=0.05),
    ema=EMAConfig(decay=0.995),
    training=TrainingConfig(
        steps=4000, batch_size=16, trainable="^vae/", compute_dtype="float32", log_every=50, checkpoint_every=500
    ),
)
