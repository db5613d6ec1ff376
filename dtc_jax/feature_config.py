"""Sizes of networks that read images for other purposes: CLIP, Inception, AlexNet, HED; import from dtc_jax.config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT, require


def _require_heads(hidden_size: int, num_attention_heads: int) -> None:
    require(
        hidden_size % num_attention_heads == 0,
        f"clip.hidden_size = {hidden_size} is not divisible by num_attention_heads = {num_attention_heads}",
    )


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of CLIP's image encoder, named after transformers' `CLIPVisionConfig`; defaults: ViT-L/14 at 224 pixels."""

    __pydantic_config__ = STRICT

    image_size: int = 224
    """Height and width of the image."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    hidden_size: int = 1024
    """Width of the tokens."""
    intermediate_size: int = 4096
    """Width inside the MLP."""
    num_hidden_layers: int = 24
    """Transformer blocks."""
    num_attention_heads: int = 16
    """Attention heads."""
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of the MLP: x * sigmoid(1.702 x) (OpenAI's weights), or the exact GELU (most of OpenCLIP's)."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""
    projection_dim: int = 768
    """Width of the space shared with the text, where there is a projection."""

    def __post_init__(self) -> None:
        require(
            self.image_size % self.patch_size == 0,
            f"clip.image_size = {self.image_size} is not divisible by patch_size = {self.patch_size}",
        )
        _require_heads(self.hidden_size, self.num_attention_heads)

    @property
    def num_tokens(self) -> int:
        """Class token and patch tokens together."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of CLIP's text encoder, named after transformers' `CLIPTextConfig`; defaults: ViT-L/14's, also SD1.5's."""

    __pydantic_config__ = STRICT

    vocab_size: int = 49408
    """Rows of the table of token embeddings."""
    max_position_embeddings: int = 77
    """Longest text, in tokens."""
    hidden_size: int = 768
    """Width of the tokens."""
    intermediate_size: int = 3072
    """Width inside the MLP."""
    num_hidden_layers: int = 12
    """Transformer blocks."""
    num_attention_heads: int = 12
    """Attention heads."""
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of the MLP, as in `CLIPVisionConfig`."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""
    eos_token_id: int = 49407
    """The token that ends a text; the features at its first place stand for the whole."""
    projection_dim: int = 768
    """Width of the space shared with the images, where there is a projection."""

    def __post_init__(self) -> None:
        _require_heads(self.hidden_size, self.num_attention_heads)

    @property
    def num_tokens(self) -> int:
        """Of a text that is padded to the full length, as Stable Diffusion's are."""
        return self.max_position_embeddings


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Both encoders of a CLIP model with their projections; defaults: ViT-L/14."""

    __pydantic_config__ = STRICT

    vision: CLIPVisionConfig = CLIPVisionConfig()
    """Image encoder."""
    text: CLIPTextConfig = CLIPTextConfig()
    """Text encoder."""

    def __post_init__(self) -> None:
        require(
            self.vision.projection_dim == self.text.projection_dim,
            f"clip.vision.projection_dim = {self.vision.projection_dim} must equal "
            f"clip.text.projection_dim = {self.text.projection_dim}",
        )


@dataclass(frozen=True, kw_only=True)
class PaintByExampleEncoderConfig:
    """Sizes of Paint by Example's image encoder, after diffusers' `PaintByExampleImageEncoder`: CLIP and a mapper."""

    __pydantic_config__ = STRICT

    vision: CLIPVisionConfig = CLIPVisionConfig()
    """CLIP's image encoder; its `projection_dim` is not used."""
    mapper_layers: int = 5
    """Transformer blocks, of one head each, on CLIP's output."""
    projection_dim: int = 768
    """Width of the tokens that come out: the U-Net's `cross_attention_dim`."""


@dataclass(frozen=True, kw_only=True)
class InceptionConfig:
    """Sizes of FID's InceptionV3; defaults are the published network's."""

    __pydantic_config__ = STRICT

    channel_divisor: int = 1
    """Every published number of channels is divided by this; 1 is the real network, more is for tests."""
    num_classes: int = 1008
    """Outputs of the classifier, which FID does not use."""
    resize_input: bool = True
    """Resize images to 299 x 299 first, as FID does (pytorch-fid's argument of this name)."""

    def __post_init__(self) -> None:
        divisor = self.channel_divisor
        require(divisor in (1, 2, 4, 8, 16), f"inception.channel_divisor = {divisor} must be 1, 2, 4, 8 or 16")

    @property
    def feature_size(self) -> int:
        """Length of the feature vector."""
        return 2048 // self.channel_divisor


@dataclass(frozen=True, kw_only=True)
class AlexNetConfig:
    """Channels of AlexNet's convolutions; defaults are torchvision's."""

    __pydantic_config__ = STRICT

    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    """One number for each of the five convolutions."""

    def __post_init__(self) -> None:
        require(len(self.channels) == 5, f"alexnet.channels needs five numbers, not {len(self.channels)}")


@dataclass(frozen=True, kw_only=True)
class HEDConfig:
    """Sizes of ControlNet's edge detector; defaults are the published network's."""

    __pydantic_config__ = STRICT

    block_channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Channels of each block of 3x3 convolutions."""
    convolutions_per_block: tuple[int, ...] = (2, 2, 3, 3, 3)
    """Convolutions in each block; each block but the first begins with 2x2 max pooling."""

    def __post_init__(self) -> None:
        require(
            len(self.block_channels) == len(self.convolutions_per_block),
            "hed.block_channels and hed.convolutions_per_block need the same length",
        )
