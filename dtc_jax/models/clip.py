"""CLIP (Radford et al., 2021, arXiv:2103.00020): encoders of images and of texts.

Module names follow transformers, also where they are misspelt: `encoder.layers.0.self_attn.q_proj` is
`encoder/layers_0/self_attn/q_proj`, and there is a `pre_layrnorm`.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from dtc_jax.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from dtc_jax.models.attention import attention
from dtc_jax.models.layers import Conv2d, Dense, LayerNorm, merge_heads, split_heads

EncoderConfig = CLIPVisionConfig | CLIPTextConfig

_LOGIT_SCALE = 2.6592  # log(1 / 0.07)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def _activation(name: Literal["quick_gelu", "gelu"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    return quick_gelu(x) if name == "quick_gelu" else jax.nn.gelu(x, approximate=False)


class _Attention(nn.Module):
    """Multi-head self-attention."""

    config: EncoderConfig
    dtype: DTypeLike

    def setup(self) -> None:
        width = self.config.hidden_size
        self.q_proj = Dense(width, dtype=self.dtype)
        self.k_proj = Dense(width, dtype=self.dtype)
        self.v_proj = Dense(width, dtype=self.dtype)
        self.out_proj = Dense(width, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"], mask: Bool[Array, "n n"] | None) -> Float[Array, "b n c"]:
        heads = self.config.num_attention_heads
        query, key, value = (split_heads(project(x), heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attention(query, key, value, mask)))


class _MLP(nn.Module):
    config: EncoderConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.fc1 = Dense(self.config.intermediate_size, dtype=self.dtype)
        self.fc2 = Dense(self.config.hidden_size, dtype=self.dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2(_activation(self.config.hidden_act, self.fc1(x)))


class _Layer(nn.Module):
    """One transformer block, norms before the branches."""

    config: EncoderConfig
    dtype: DTypeLike

    def setup(self) -> None:
        eps = self.config.layer_norm_eps
        self.layer_norm1 = LayerNorm(eps, dtype=self.dtype)
        self.self_attn = _Attention(self.config, self.dtype)
        self.layer_norm2 = LayerNorm(eps, dtype=self.dtype)
        self.mlp = _MLP(self.config, self.dtype)

    def __call__(self, x: Float[Array, "b n c"], mask: Bool[Array, "n n"] | None) -> Float[Array, "b n c"]:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class _Encoder(nn.Module):
    config: EncoderConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.layers = [_Layer(self.config, self.dtype) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, x: Float[Array, "b n c"], mask: Bool[Array, "n n"] | None = None) -> Float[Array, "b n c"]:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _Embedding(nn.Module):
    """A table of vectors, one per index, as `torch.nn.Embedding`."""

    rows: int
    width: int

    @nn.compact
    def __call__(self, indices: Int[Array, "..."]) -> Float[Array, "... c"]:
        table = self.param("embedding", nn.initializers.truncated_normal(0.02), (self.rows, self.width), jnp.float32)
        return jnp.take(table, indices, axis=0)


class _VisionEmbeddings(nn.Module):
    """Class token and patches, row by row, with positions added."""

    config: CLIPVisionConfig
    dtype: DTypeLike

    def setup(self) -> None:
        width, patch = self.config.hidden_size, self.config.patch_size
        self.class_embedding = self.param(
            "class_embedding", nn.initializers.truncated_normal(0.02), (width,), jnp.float32
        )
        self.patch_embedding = Conv2d(
            width, kernel_size=patch, stride=patch, padding=0, use_bias=False, dtype=self.dtype
        )
        self.position_embedding = _Embedding(self.config.num_tokens, width)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_embedding, (patches.shape[0], 1, patches.shape[-1])).astype(self.dtype)
        positions = self.position_embedding(jnp.arange(self.config.num_tokens))
        return jnp.concatenate([first, patches], axis=1) + positions.astype(self.dtype)


class CLIPVisionModel(nn.Module):
    """CLIP's image encoder.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic and of the results.
    """

    config: CLIPVisionConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        eps = self.config.layer_norm_eps
        self.embeddings = _VisionEmbeddings(self.config, self.dtype)
        self.pre_layrnorm = LayerNorm(eps, dtype=self.dtype)
        self.encoder = _Encoder(self.config, self.dtype)
        self.post_layernorm = LayerNorm(eps, dtype=self.dtype)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b n c"], Float[Array, "b c"]]:
        """All tokens, class token first, as the last block leaves them, and the class token after the last LayerNorm.

        These are `last_hidden_state` and `pooler_output` of transformers; the first has not passed the LayerNorm.

        Args:
            pixels: RGB normalised by CLIP's mean and deviation (`dtc_jax.models.inputs.normalize_clip`),
                `config.image_size` on each side.

        Raises:
            ValueError: the images have another size.
        """
        size = self.config.image_size
        height, width = pixels.shape[1:3]
        if (height, width) != (size, size):
            raise ValueError(f"this CLIP takes images of {size}x{size} pixels, not {height}x{width}")
        tokens = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return tokens, self.post_layernorm(tokens[:, 0])

    def normalized_tokens(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b n c"]:
        """All tokens after the last LayerNorm; the first is the pooled output of `__call__`."""
        return self.post_layernorm(self(pixels)[0])


class _TextEmbeddings(nn.Module):
    """Words with positions added."""

    config: CLIPTextConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.token_embedding = _Embedding(self.config.vocab_size, self.config.hidden_size)
        self.position_embedding = _Embedding(self.config.max_position_embeddings, self.config.hidden_size)

    def __call__(self, token_ids: Int[Array, "b n"]) -> Float[Array, "b n c"]:
        positions = self.position_embedding(jnp.arange(token_ids.shape[1]))
        return (self.token_embedding(token_ids) + positions).astype(self.dtype)


class CLIPTextModel(nn.Module):
    """CLIP's text encoder, which Stable Diffusion 1.x conditions on.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic and of the results.
    """

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.embeddings = _TextEmbeddings(self.config, self.dtype)
        self.encoder = _Encoder(self.config, self.dtype)
        self.final_layer_norm = LayerNorm(self.config.layer_norm_eps, dtype=self.dtype)

    def __call__(self, token_ids: Int[Array, "b n"]) -> tuple[Float[Array, "b n c"], Float[Array, "b c"]]:
        """All tokens after the last LayerNorm, each seeing those before it, and the one at the first end of text.

        These are `last_hidden_state` and `pooler_output` of transformers.

        Args:
            token_ids: From CLIP's tokenizer, padded to a common length; padding comes after the end and is not seen.

        Raises:
            ValueError: more tokens than there are positions.
        """
        length, longest = token_ids.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"this CLIP takes at most {longest} tokens, not {length}")
        tokens = self.encoder(self.embeddings(token_ids), jnp.tril(jnp.ones((length, length), bool)))
        tokens = self.final_layer_norm(tokens)
        end = jnp.argmax(token_ids == self.config.eos_token_id, axis=1)
        return tokens, jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]


class CLIPVisionModelWithProjection(nn.Module):
    """CLIP's image encoder up to the space that it shares with the text (the CLIP score's features).

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic.
    """

    config: CLIPVisionConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.vision_model = CLIPVisionModel(self.config, self.dtype)
        self.visual_projection = Dense(self.config.projection_dim, use_bias=False, dtype=self.dtype)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Image embeddings, float32, not normalised to length one; `pixels` as in `CLIPVisionModel`."""
        return self.visual_projection(self.vision_model(pixels)[1]).astype(jnp.float32)


class CLIPModel(nn.Module):
    """Both encoders with their projections, as in the published files of CLIP.

    Attributes:
        config: Sizes.
        dtype: Type of the arithmetic.
    """

    config: CLIPConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        width = self.config.vision.projection_dim
        self.vision_model = CLIPVisionModel(self.config.vision, self.dtype)
        self.visual_projection = Dense(width, use_bias=False, dtype=self.dtype)
        self.text_model = CLIPTextModel(self.config.text, self.dtype)
        self.text_projection = Dense(width, use_bias=False, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(_LOGIT_SCALE), (), jnp.float32)

    def image_features(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Image embeddings, float32, not normalised to length one; `pixels` as in `CLIPVisionModel`."""
        return self.visual_projection(self.vision_model(pixels)[1]).astype(jnp.float32)

    def text_features(self, token_ids: Int[Array, "t n"]) -> Float[Array, "t p"]:
        """Text embeddings, float32, not normalised to length one; `token_ids` as in `CLIPTextModel`."""
        return self.text_projection(self.text_model(token_ids)[1]).astype(jnp.float32)

    def __call__(self, pixels: Float[Array, "b h w 3"], token_ids: Int[Array, "t n"]) -> Float[Array, "b t"]:
        """Logits of every image (rows) with every text: the cosines times exp(logit_scale)."""
        images, texts = self.image_features(pixels), self.text_features(token_ids)
        images /= jnp.linalg.norm(images, axis=-1, keepdims=True)
        texts /= jnp.linalg.norm(texts, axis=-1, keepdims=True)
        return jnp.exp(self.logit_scale) * images @ texts.T
