"""DreamPaint in miniature: the shipped model tuned on photos of one product; --init-from dtc_jax/shipped/tiny."""

from dataclasses import replace

from configs.dreampaint import CONFIG as DREAMPAINT
from configs.tiny import CONFIG as TINY
from dtc_jax.config import CLIPTextConfig, HintConfig, OptimizerConfig, ReferenceConfig, SamplingConfig, TrainingConfig

CONFIG = replace(
    DREAMPAINT,
    name="tiny_dreampaint",
    model=replace(
        TINY.model,
        # No small text encoder is published: this one is drawn afresh, and reads bytes.
        reference_encoder=CLIPTextConfig(
            vocab_size=514,
            eos_token_id=513,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
        reference=ReferenceConfig(projection="none"),
        hint=HintConfig(kind="none"),
    ),
    data=replace(DREAMPAINT.data, num_class_images=64),
    diffusion=TINY.diffusion,
    # The U-Net has to learn what the words of an encoder that it has never met stand for.
    optimizer=OptimizerConfig(learning_rate=3e-4),
    training=TrainingConfig(
        steps=400,
        batch_size=8,
        trainable="^unet(/|$)",
        compute_dtype="float32",
        checkpoint_every=200,
        sample_every=200,
        sample_count=4,
    ),
    sampling=SamplingConfig(num_inference_steps=10, guidance_scale=2.0, timestep_spacing="trailing"),
)
