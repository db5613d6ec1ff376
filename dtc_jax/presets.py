"""Sizes of the networks: `sd15` (the paper's), `tiny` (the shipped model's), `test` (the smallest with every part)."""

from __future__ import annotations

from dtc_jax.config import (
    AutoencoderKLConfig,
    DINOv2Config,
    HintConfig,
    ModelConfig,
    PatchAutoencoderConfig,
    UNetConfig,
    VGGConfig,
)


def sd15() -> ModelConfig:
    """Stable Diffusion 1.5 inpainting, DINOv2 ViT-g/14 at 224 pixels, VGG-19: the paper's sizes at 512 pixels."""
    return ModelConfig()


def tiny(image_size: int = 64) -> ModelConfig:
    """The shipped model: about nine million parameters, images of 64 pixels, latents a quarter of that."""
    return ModelConfig(
        image_size=image_size,
        unet=UNetConfig(
            in_channels=25,
            out_channels=12,
            block_out_channels=(64, 96, 128),
            layers_per_block=1,
            attention_levels=(False, True, True),
            num_attention_heads=4,
            cross_attention_dim=128,
            norm_num_groups=8,
        ),
        vae=PatchAutoencoderConfig(latent_channels=12),
        reference_encoder=DINOv2Config(
            image_size=64,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            use_swiglu_ffn=False,
        ),
        vgg=VGGConfig(block_channels=(8, 16, 32, 32, 32), convolutions_per_block=(2, 2, 2, 2, 2)),
        hint=HintConfig(fit="stretch", region="bounding_box", adapter_channels=(16, 32, 48)),
    )


def test() -> ModelConfig:
    """The smallest model that still has every part; used by the test suite."""
    return ModelConfig(
        image_size=16,
        unet=UNetConfig(
            in_channels=9,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            attention_levels=(True, False),
            num_attention_heads=2,
            cross_attention_dim=8,
            norm_num_groups=4,
        ),
        vae=AutoencoderKLConfig(
            latent_channels=4,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=1.0,
        ),
        reference_encoder=DINOv2Config(
            image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
        ),
        vgg=VGGConfig(block_channels=(4, 4, 8, 8, 8), convolutions_per_block=(2, 2, 2, 2, 2)),
        hint=HintConfig(adapter_channels=(4, 4, 8)),
    )
