"""Paint by Example's encoder of the reference photo (Yang et al., 2022, arXiv:2211.13227): CLIP and a mapper.

Module names follow diffusers' `PaintByExampleImageEncoder`.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import PaintByExampleEncoderConfig
from dtc_jax.models.clip import CLIPVisionModel
from dtc_jax.models.layers import Dense, LayerNorm
from dtc_jax.models.transformer import Attention


class _MapperMLP(nn.Module):
    """Two layers with the exact GELU, to four times the width and back; names net_0/proj and net_2."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        x = _MapperLinear(4 * self.features, self.dtype, name="net_0")(x)
        return Dense(self.features, dtype=self.dtype, name="net_2")(jax.nn.gelu(x, approximate=False))


class _MapperLinear(nn.Module):
    features: int
    dtype: DTypeLike

    def setup(self) -> None:
        self.proj = Dense(self.features, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        return self.proj(x)


class _MapperBlock(nn.Module):
    """Single-head self-attention and MLP, each after a LayerNorm and residual."""

    features: int
    dtype: DTypeLike

    def setup(self) -> None:
        self.norm1 = LayerNorm(dtype=self.dtype)
        self.attn1 = Attention(self.features, num_heads=1, dtype=self.dtype, use_bias=True)
        self.norm3 = LayerNorm(dtype=self.dtype)
        self.ff = _MapperMLP(self.features, self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        return x + self.ff(self.norm3(x))


class _Mapper(nn.Module):
    features: int
    num_layers: int
    dtype: DTypeLike

    def setup(self) -> None:
        self.blocks = [_MapperBlock(self.features, self.dtype) for _ in range(self.num_layers)]

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        for block in self.blocks:
            x = block(x)
        return x


class PaintByExampleProjection(nn.Module):
    """What Paint by Example does to CLIP's tokens: the mapper, a LayerNorm and a projection.

    The rest of `PaintByExampleImageEncoder` is CLIP before it, which it leaves as it is, and the null vector; here the
    three are networks of their own, of which the first is frozen.

    Attributes:
        features: Width of the tokens.
        num_layers: Blocks of the mapper.
        projection_dim: Width of what comes out.
        dtype: Type of the arithmetic and of what comes out.
    """

    features: int
    num_layers: int
    projection_dim: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.mapper = _Mapper(self.features, self.num_layers, self.dtype)
        self.final_layer_norm = LayerNorm(dtype=self.dtype)
        self.proj_out = Dense(self.projection_dim, dtype=self.dtype)

    def __call__(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        """Tokens for the cross-attention, from CLIP's after its last LayerNorm."""
        return self.proj_out(self.final_layer_norm(self.mapper(tokens)))


class PaintByExampleImageEncoder(nn.Module):
    """CLIP's image encoder, transformer blocks on its output, a LayerNorm and a projection.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic and of the tokens.
    """

    config: PaintByExampleEncoderConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        config, width = self.config, self.config.vision.hidden_size
        self.model = CLIPVisionModel(config.vision, self.dtype)
        self.mapper = _Mapper(width, config.mapper_layers, self.dtype)
        self.final_layer_norm = LayerNorm(dtype=self.dtype)
        self.proj_out = Dense(config.projection_dim, dtype=self.dtype)
        # What takes the token's place where the reference is dropped (guidance).
        self.uncond_vector = self.param(
            "uncond_vector", nn.initializers.normal(1.0), (1, 1, config.projection_dim), jnp.float32
        )

    def __call__(self, pixels: Float[Array, "b h w 3"], tokens: Literal["cls", "all"] = "cls") -> Float[Array, "b n d"]:
        """Tokens for the cross-attention; `pixels` as in `CLIPVisionModel`.

        Args:
            pixels: The reference.
            tokens: `cls`: the pooled output alone, one token, as published; `all`: every token after CLIP's last
                LayerNorm, the pooled output first (Diffuse to Choose, table 2; the published mapper has not seen this).
        """
        features = self.model.normalized_tokens(pixels)
        features = self.mapper(features[:, :1] if tokens == "cls" else features)
        return self.proj_out(self.final_layer_norm(features))
