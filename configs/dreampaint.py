"""DreamPaint: Stable Diffusion inpainting tuned on a few photos of one product, which a rare word names."""

from dataclasses import replace

from configs.sd15 import CONFIG as SD15
from dtc_jax import presets
from dtc_jax.config import (
    DataConfig,
    EMAConfig,
    HintConfig,
    LossConfig,
    OptimizerConfig,
    ReferenceConfig,
    SamplingConfig,
    TrainingConfig,
)

CONFIG = replace(
    SD15,
    name="dreampaint",
    model=replace(
        SD15.model,
        reference_encoder=presets.clip_vit_large_patch14().text,
        reference=ReferenceConfig(projection="none"),
        hint=HintConfig(kind="none"),
    ),
    # A mirrored product is another product.
    data=DataConfig(kind="product", flip_probability=0.0),
    loss=LossConfig(perceptual_weight=0.0, drop_tokens=0.0, prior_weight=1.0),
    # 5e-6 for Stable Diffusion and lambda = 1: DreamBooth, 3.2 and 4; 800 steps of one photo and one of 200 pictures of
    # the class: diffusers' example of DreamBooth for the inpainting model.
    optimizer=OptimizerConfig(learning_rate=5e-6),
    # So short a run ends before an average has anything to say.
    ema=EMAConfig(enabled=False),
    training=TrainingConfig(
        steps=800, batch_size=2, trainable="^unet(/|$)", checkpoint_every=400, sample_every=400, sample_count=4
    ),
    sampling=SamplingConfig(guidance_scale=7.5),
)
