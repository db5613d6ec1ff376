"""Sizes of the networks, as frozen, validated dataclasses; import them from `dtc_jax.config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dtc_jax.autoencoder_config import AutoencoderConfig, AutoencoderKLConfig, AutoencoderTinyConfig
from dtc_jax.config_base import STRICT, ConfigError, require
from dtc_jax.feature_config import CLIPTextConfig, CLIPVisionConfig, HEDConfig


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of the denoising U-Net, named after diffusers' `UNet2DConditionModel`; defaults are SD1.5-inpainting's."""

    __pydantic_config__ = STRICT

    in_channels: int = 9
    """Input channels: noisy latents, mask (1), masked latents, in this order."""
    out_channels: int = 4
    """Output channels: as many as the latents have."""
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each resolution level; each level but the last halves the resolution."""
    layers_per_block: int = 2
    """ResNet blocks per level of the encoder (the decoder has one more)."""
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    """Which levels have a spatial transformer after every ResNet block (the middle always has one)."""
    num_attention_heads: int = 8
    """Attention heads at every level (diffusers calls this `attention_head_dim` in SD1.5's config)."""
    cross_attention_dim: int = 768
    """Width of the conditioning tokens."""
    norm_num_groups: int = 32
    """Groups of every GroupNorm."""
    mask_channel: Literal["fill", "keep"] = "fill"
    """What 1 means in the mask channel that the U-Net reads: `fill` as everywhere here and in Stable Diffusion's
    inpainting model; `keep` for weights that started as Paint by Example."""

    def __post_init__(self) -> None:
        require(
            len(self.attention_levels) == len(self.block_out_channels),
            "unet.attention_levels needs one entry per level of unet.block_out_channels",
        )
        for channels in self.block_out_channels:
            require(
                channels % self.norm_num_groups == 0,
                f"unet.block_out_channels: {channels} is not divisible by "
                f"unet.norm_num_groups = {self.norm_num_groups}",
            )
            require(
                channels % self.num_attention_heads == 0,
                f"unet.block_out_channels: {channels} is not divisible by "
                f"unet.num_attention_heads = {self.num_attention_heads}",
            )

    @property
    def downsampling(self) -> int:
        """By how much the latents' height and width must be divisible."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class DINOv2Config:
    """Sizes of the reference encoder, named after transformers' `Dinov2Config`; defaults: ViT-g/14 at 224 pixels."""

    __pydantic_config__ = STRICT

    image_size: int = 224
    """Height and width of the reference as the encoder sees it."""
    position_image_size: int | None = None
    """The image size that the position table is for, if it is another (published weights: 518): the table has a row for
    each of its patches, and one for CLS, and is interpolated to `image_size`, as in DINOv2's own code."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    hidden_size: int = 1536
    """Width of the tokens."""
    num_hidden_layers: int = 40
    """Transformer blocks."""
    num_attention_heads: int = 24
    """Attention heads."""
    mlp_ratio: int = 4
    """Width of the MLP over the width of the tokens (SwiGLU takes 2/3 of it, rounded up to a multiple of 8)."""
    use_swiglu_ffn: bool = True
    """SwiGLU (ViT-g) instead of a GELU MLP (S, B, L)."""
    layer_norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        require(
            self.image_size % self.patch_size == 0,
            f"reference_encoder.image_size = {self.image_size} is not divisible by patch_size = {self.patch_size}",
        )
        require(
            (self.position_image_size or self.image_size) % self.patch_size == 0,
            f"reference_encoder.position_image_size = {self.position_image_size} is not divisible by "
            f"patch_size = {self.patch_size}",
        )
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"reference_encoder.hidden_size = {self.hidden_size} is not divisible by num_attention_heads",
        )

    @property
    def num_tokens(self) -> int:
        """CLS token and patch tokens together."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def num_positions(self) -> int:
        """Rows of the position table."""
        return ((self.position_image_size or self.image_size) // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """Sizes of the perceptual loss's network; defaults are VGG-19's (Simonyan and Zisserman, 2015, table 1, E)."""

    __pydantic_config__ = STRICT

    block_channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Channels of each block of 3x3 convolutions."""
    convolutions_per_block: tuple[int, ...] = (2, 2, 4, 4, 4)
    """Convolutions in each block; blocks are separated by 2x2 max pooling."""

    def __post_init__(self) -> None:
        require(
            len(self.block_channels) == len(self.convolutions_per_block),
            "vgg.block_channels and vgg.convolutions_per_block need the same length",
        )


@dataclass(frozen=True, kw_only=True)
class HintConfig:
    """The hint: the reference's pixels stitched into the mask, and the path that reads them (paper 3.2)."""

    __pydantic_config__ = STRICT

    kind: Literal["reference", "canny", "hed", "latent", "none"] = "reference"
    """`reference`: the stitched reference's pixels; `canny`: its edges by Canny's filter, channel by channel; `hed`:
    its edges by a network, holistically-nested edge detection; `latent`: the scene with the reference stitched in, as
    the autoencoder encodes it, without an adapter; `none`: no hint path at all (that is Paint by Example)."""
    fit: Literal["contain", "stretch"] = "contain"
    """How the reference fills its box: aspect kept and centred, or stretched."""
    region: Literal["largest_rectangle", "bounding_box"] = "largest_rectangle"
    """Its box: the largest rectangle inside the mask (the paper's), or the mask's bounding box, in which a mask that
    follows a silhouette leaves the reference far more pixels."""
    trim: bool = True
    """Cut the white or transparent margin off the reference before stitching."""
    adapter_channels: tuple[int, ...] = (16, 32, 96)
    """Channels of the adapter's first convolutions; a last one goes to the latents' channels (paper: four layers)."""
    time: Literal["timestep", "fixed"] = "timestep"
    """`timestep`: the hint encoder gets t like the encoder that it replicates; `fixed`: always t = 0, so that its
    features are one pass for all sampling steps."""

    def __post_init__(self) -> None:
        require(len(self.adapter_channels) > 0, "hint.adapter_channels needs at least one convolution")


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How hint features enter the main U-Net."""

    __pydantic_config__ = STRICT

    kind: Literal["film", "addition", "cross_attention"] = "film"
    """On every skip and the middle, with its hint feature h: `film`: (1 + gamma(h)) * x + beta(h) (paper 3.2);
    `addition`: x + conv(h), ControlNet's zero convolutions; `cross_attention`: x attends to h."""
    pooled: bool = False
    """FiLM with one gamma and beta per channel from the average-pooled hint feature (the FiLM paper) instead of one per
    place."""

    def __post_init__(self) -> None:
        require(
            self.kind == "film" or not self.pooled,
            f"fusion.pooled belongs to fusion.kind = film, not {self.kind}",
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """What becomes of the reference encoder's tokens on their way to the cross-attention."""

    __pydantic_config__ = STRICT

    tokens: Literal["all", "cls"] = "all"
    """`all`: CLS and patches; `cls`: CLS alone, one token (Paint by Example)."""
    projection: Literal["dense", "mapper", "none"] = "dense"
    """`dense`: one dense layer (paper 5.2); `mapper`: Paint by Example's, transformer blocks before it; `none`: a text
    encoder's tokens as they are."""
    mapper_layers: int = 5
    """Transformer blocks of the mapper."""

    def __post_init__(self) -> None:
        require(self.mapper_layers >= 1, f"reference.mapper_layers = {self.mapper_layers} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every network of Diffuse to Choose; defaults are the full SD1.5 size."""

    __pydantic_config__ = STRICT

    image_size: int = 512
    """Height and width of scene, mask and hint in pixels."""
    unet: UNetConfig = UNetConfig()
    """Main U-Net; the hint encoder is a replica of its encoder and middle block."""
    vae: AutoencoderConfig = AutoencoderKLConfig()  # noqa: RUF009 (frozen, as the others)
    """Autoencoder between pixels and latents."""
    reference_encoder: DINOv2Config | CLIPVisionConfig | CLIPTextConfig = DINOv2Config(position_image_size=518)
    """What makes the tokens: DINOv2 or CLIP's image encoder, of the reference photo; or CLIP's text encoder, of a
    prompt that stands for the one product that the model is tuned on (DreamPaint)."""
    reference: ReferenceConfig = ReferenceConfig()
    """Which of its tokens are used, and how they get the cross-attention's width."""
    vgg: VGGConfig = VGGConfig()
    """Network of the perceptual loss."""
    hint: HintConfig = HintConfig()
    """What the hint is."""
    fusion: FusionConfig = FusionConfig()
    """How the hint modulates the U-Net."""
    hed: HEDConfig = HEDConfig()  # noqa: RUF009 (frozen, as the others)
    """Network of the hint's edges, where `hint.kind = hed`."""
    taesd: AutoencoderTinyConfig = AutoencoderTinyConfig()  # noqa: RUF009 (frozen, as the others)
    """The small autoencoder for the same latents, where `loss.perceptual_decoder = taesd`; no part of the model."""

    def __post_init__(self) -> None:
        require(
            self.unet.in_channels == 2 * self.vae.latent_channels + 1,
            f"unet.in_channels = {self.unet.in_channels} must be 2 * vae.latent_channels + 1 "
            f"= {2 * self.vae.latent_channels + 1} (noisy latents, mask, masked latents)",
        )
        require(
            self.unet.out_channels == self.vae.latent_channels,
            f"unet.out_channels = {self.unet.out_channels} must equal vae.latent_channels = {self.vae.latent_channels}",
        )
        step = self.vae.factor * self.unet.downsampling
        require(self.image_size % step == 0, f"model.image_size = {self.image_size} is not divisible by {step}")
        smallest = 2 ** (len(self.hed.block_channels) - 1)
        require(
            self.hint.kind != "hed" or self.image_size >= smallest,
            f"model.image_size = {self.image_size} is below {smallest}, what hint.kind = hed needs",
        )
        self._check_prompted()

    def _check_prompted(self) -> None:
        projection, kind, encoder = self.reference.projection, self.hint.kind, self.reference_encoder
        require(
            self.prompted == (projection == "none"),
            f"model.reference.projection = {projection}: a text encoder as model.reference_encoder needs none, "
            "and an image encoder another",
        )
        if not isinstance(encoder, CLIPTextConfig):
            return
        require(
            kind == "none" and self.reference.tokens == "all",
            f"model.hint.kind = {kind}, model.reference.tokens = {self.reference.tokens}: a model whose condition is a "
            "prompt sees no reference; it needs none and all",
        )
        require(
            encoder.hidden_size == self.unet.cross_attention_dim,
            f"model.reference_encoder.hidden_size = {encoder.hidden_size} must be unet.cross_attention_dim = "
            f"{self.unet.cross_attention_dim}: a text encoder's tokens are taken as they are",
        )

    @property
    def prompted(self) -> bool:
        """Whether the condition is a prompt (DreamPaint) and not a reference photo."""
        return isinstance(self.reference_encoder, CLIPTextConfig)

    @property
    def reference_size(self) -> int:
        """Height and width of the reference in pixels.

        Raises:
            ConfigError: the model takes none.
        """
        if isinstance(self.reference_encoder, CLIPTextConfig):
            raise ConfigError("this model is tuned on one product, which a prompt names: it takes no reference photo")
        return self.reference_encoder.image_size

    @property
    def num_reference_tokens(self) -> int:
        """Tokens of a reference, or of a prompt, that the cross-attention sees."""
        return 1 if self.reference.tokens == "cls" else self.reference_encoder.num_tokens

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.image_size // self.vae.factor
