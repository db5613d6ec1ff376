"""Sizes of the networks.

Whole models: `sd15` (the paper's), `tiny` (the shipped model's), `test` (the smallest with every part). Single networks
at the sizes in which they are published: the rest.
"""

from __future__ import annotations

from typing import Literal

from dtc_jax.config import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    DINOv2Config,
    HEDConfig,
    HintConfig,
    InceptionConfig,
    ModelConfig,
    PaintByExampleEncoderConfig,
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


def autoencoder_kl() -> AutoencoderKLConfig:
    """Stable Diffusion 1.5's autoencoder."""
    return AutoencoderKLConfig()


def taesd() -> AutoencoderTinyConfig:
    """TAESD for the latents of Stable Diffusion 1.x."""
    return AutoencoderTinyConfig()


def dinov2(size: Literal["small", "base", "large", "giant"] = "giant", image_size: int = 224) -> DINOv2Config:
    """DINOv2 with patches of 14 pixels (facebookresearch/dinov2, dinov2/models/vision_transformer.py)."""
    width, layers, heads = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}.get(
        size, (1536, 40, 24)
    )
    return DINOv2Config(
        image_size=image_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        use_swiglu_ffn=size == "giant",
    )


def vgg16() -> VGGConfig:
    """VGG-16 (Simonyan and Zisserman, 2015, table 1, D)."""
    return VGGConfig(convolutions_per_block=(2, 2, 3, 3, 3))


def vgg19() -> VGGConfig:
    """VGG-19 (Simonyan and Zisserman, 2015, table 1, E)."""
    return VGGConfig()


def clip_vit_large_patch14() -> CLIPConfig:
    """CLIP ViT-L/14 at 224 pixels; its image encoder is Paint by Example's, its text encoder Stable Diffusion 1.5's."""
    return CLIPConfig()


def clip_vit_base_patch32() -> CLIPConfig:
    """CLIP ViT-B/32 at 224 pixels: the CLIP score's."""
    return CLIPConfig(
        vision=CLIPVisionConfig(
            patch_size=32,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=512,
        ),
        text=CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=512),
    )


def paint_by_example_encoder() -> PaintByExampleEncoderConfig:
    """Paint by Example's image encoder."""
    return PaintByExampleEncoderConfig()


def fid_inception() -> InceptionConfig:
    """The InceptionV3 of the Frechet inception distance."""
    return InceptionConfig()


def controlnet_hed() -> HEDConfig:
    """ControlNet's HED."""
    return HEDConfig()
