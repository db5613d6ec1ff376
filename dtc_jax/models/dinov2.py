"""DINOv2 (Oquab et al., 2023, arXiv:2304.07193): the vision transformer that turns the reference photo into tokens.

Module names follow the published `Dinov2Model` checkpoints of transformers (`encoder.layer.0` is `encoder/layer_0`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dtc_jax.config import DINOv2Config
from dtc_jax.models.attention import attention
from dtc_jax.models.layers import Conv2d, Dense, LayerNorm, merge_heads, split_heads

_INTERPOLATION_OFFSET = 0.1
_CUBIC = -0.75


def interpolation_matrix(source: int, target: int) -> np.ndarray:
    """How DINOv2 resizes its position table along one axis, as a matrix [target, source], float32.

    `torch.nn.functional.interpolate(mode="bicubic", scale_factor=(target + 0.1) / source)`, no antialiasing: place i
    reads at (i + 0.5) * source / (target + 0.1) - 0.5, the cubic kernel has a = -0.75, the border is repeated.
    The 0.1 is `interpolate_offset` of facebookresearch/dinov2 at b8931f7 (dinov2/models/vision_transformer.py); without
    it the table is several percent another.
    """
    matrix = np.zeros((target, source))
    # Rounded to float32 where PyTorch does.
    step = np.float32(source / (target + _INTERPOLATION_OFFSET))
    places = step * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    for tap in range(-1, 3):
        index = np.floor(places).astype(int) + tap
        distance = np.abs(places - index)
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
        weights = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(target), index.clip(0, source - 1)), weights)
    return matrix.astype(np.float32)


def interpolate_positions(table: Float[Array, "1 n c"], config: DINOv2Config) -> Float[Array, "1 m c"]:
    """The position table at the encoder's image size, CLS first.

    Args:
        table: `config.num_positions` rows.
        config: Its sizes; where both image sizes are equal the table is returned as it is.
    """
    target = config.image_size // config.patch_size
    source = (config.position_image_size or config.image_size) // config.patch_size
    if source == target:
        return table
    matrix = interpolation_matrix(source, target)
    grid = table[0, 1:].reshape(source, source, -1)
    resized = jnp.einsum("ip,jq,pqc->ijc", matrix, matrix, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:, :1], resized.reshape(1, target * target, -1)], axis=1)


class _PatchEmbeddings(nn.Module):
    """One convolution whose stride is its kernel: patches of pixels to vectors, row by row."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        patch = self.config.patch_size
        self.projection = Conv2d(self.config.hidden_size, kernel_size=patch, stride=patch, padding=0, dtype=self.dtype)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        x = self.projection(pixels)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class _Embeddings(nn.Module):
    """CLS token and patches, with positions added."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        width = self.config.hidden_size
        normal = nn.initializers.truncated_normal(0.02)
        self.cls_token = self.param("cls_token", normal, (1, 1, width), jnp.float32)
        # Used by DINOv2's own training only; here so that the parameters are the published ones.
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, width), jnp.float32)
        self.position_embeddings = self.param(
            "position_embeddings", normal, (1, self.config.num_positions, width), jnp.float32
        )
        self.patch_embeddings = _PatchEmbeddings(self.config, self.dtype)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        patches = self.patch_embeddings(pixels)
        cls_token = jnp.broadcast_to(self.cls_token, (patches.shape[0], 1, patches.shape[-1])).astype(self.dtype)
        tokens = jnp.concatenate([cls_token, patches], axis=1)
        return tokens + interpolate_positions(self.position_embeddings, self.config).astype(self.dtype)


class _SelfAttention(nn.Module):
    """Query, key and value of every head, and the attention itself."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        width = self.config.hidden_size
        self.query = Dense(width, dtype=self.dtype)
        self.key = Dense(width, dtype=self.dtype)
        self.value = Dense(width, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        heads = self.config.num_attention_heads
        query, key, value = (split_heads(project(x), heads) for project in (self.query, self.key, self.value))
        return merge_heads(attention(query, key, value))


class _SelfOutput(nn.Module):
    """Projection after the heads are merged."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        self.dense = Dense(self.config.hidden_size, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.dense(x)


class _Attention(nn.Module):
    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        self.attention = _SelfAttention(self.config, self.dtype)
        self.output = _SelfOutput(self.config, self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.output(self.attention(x))


class _MLP(nn.Module):
    """Two layers with the exact GELU (S, B, L)."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        self.fc1 = Dense(self.config.hidden_size * self.config.mlp_ratio, dtype=self.dtype)
        self.fc2 = Dense(self.config.hidden_size, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class _SwiGLU(nn.Module):
    """Gated MLP (g) with gate and value in one matrix, in this order (Shazeer, 2020, arXiv:2002.05202)."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        hidden = int(self.config.hidden_size * self.config.mlp_ratio * 2 / 3)
        hidden = (hidden + 7) // 8 * 8
        self.weights_in = Dense(2 * hidden, dtype=self.dtype)
        self.weights_out = Dense(self.config.hidden_size, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        gate, value = jnp.split(self.weights_in(x), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * value)


class _LayerScale(nn.Module):
    """One learned factor per channel on a residual branch (Touvron et al., 2021, arXiv:2103.17239)."""

    config: DINOv2Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        lambda1 = self.param("lambda1", nn.initializers.ones, (self.config.hidden_size,), jnp.float32)
        return x * lambda1.astype(self.dtype)


class _Layer(nn.Module):
    """One transformer block, norms before the branches."""

    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        eps = self.config.layer_norm_eps
        self.norm1 = LayerNorm(eps, dtype=self.dtype)
        self.attention = _Attention(self.config, self.dtype)
        self.layer_scale1 = _LayerScale(self.config, self.dtype)
        self.norm2 = LayerNorm(eps, dtype=self.dtype)
        mlp = _SwiGLU if self.config.use_swiglu_ffn else _MLP
        self.mlp = mlp(self.config, self.dtype)
        self.layer_scale2 = _LayerScale(self.config, self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class _Encoder(nn.Module):
    config: DINOv2Config
    dtype: DTypeLike

    def setup(self) -> None:
        self.layer = [_Layer(self.config, self.dtype) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        for layer in self.layer:
            x = layer(x)
        return x


class Dinov2Model(nn.Module):
    """DINOv2 without registers, from pixels to tokens.

    Attributes:
        config: Sizes; the position table has `config.num_positions` rows.
        dtype: Type of the arithmetic and of the tokens.
    """

    config: DINOv2Config
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.embeddings = _Embeddings(self.config, self.dtype)
        self.encoder = _Encoder(self.config, self.dtype)
        self.layernorm = LayerNorm(self.config.layer_norm_eps, dtype=self.dtype)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        """Tokens after the last LayerNorm: CLS first, then the patches row by row.

        Args:
            pixels: RGB, already normalised by ImageNet's mean and standard deviation, `config.image_size` on each side.

        Raises:
            ValueError: the images have another size.
        """
        size = self.config.image_size
        height, width = pixels.shape[1:3]
        if (height, width) != (size, size):
            raise ValueError(f"the reference encoder takes images of {size}x{size} pixels, not {height}x{width}")
        return self.layernorm(self.encoder(self.embeddings(pixels)))
