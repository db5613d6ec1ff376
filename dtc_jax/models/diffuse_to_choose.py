"""Diffuse to Choose (Seyfioglu et al., 2024, arXiv:2401.13795): every network, put together as pure functions.

        z0 = VAE(scene);  zm = VAE(scene * (1 - mask));  tokens = projection(DINOv2(reference))
        prediction = UNet(concat(z_t, mask, zm), t, tokens), every skip and the middle modulated by
                     FiLM(hint_encoder(adapter(hint) + zm, t, tokens))

Parameters are one nested dict with a tree per network: `unet`, `hint_encoder`, `hint_adapter`, `fusion`,
`reference_projection`, `null_tokens` are trained, `vae`, `reference_encoder`, `vgg`, `hed` usually are not. The paper's
variants are values of the configuration (docs/variants.md): some lack networks, one has `hed`, one `prompts`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Num

from dtc_jax.config import AutoencoderKLConfig, AutoencoderTinyConfig, CLIPTextConfig, CLIPVisionConfig, ModelConfig
from dtc_jax.models import conditioning
from dtc_jax.models.autoencoder_kl import AutoencoderKL, sample_posterior, scale, unscale
from dtc_jax.models.autoencoder_tiny import AutoencoderTiny
from dtc_jax.models.clip import CLIPTextModel, CLIPVisionModel
from dtc_jax.models.dinov2 import Dinov2Model
from dtc_jax.models.fusion import Feature, Fuse, Fusion, Modulation, keep_modulations
from dtc_jax.models.hed import ControlNetHED
from dtc_jax.models.hint import HintAdapter, HintEncoder, replicate_encoder
from dtc_jax.models.initialize import RULES, initialize
from dtc_jax.models.patch_autoencoder import PatchAutoencoder
from dtc_jax.models.remat import Remat
from dtc_jax.models.transformer import Context
from dtc_jax.models.unet import Conditioning, UNet2DConditionModel, feature_channels
from dtc_jax.models.vgg import VGG

Params = Mapping[str, Any]
Images = Float[Array, "b H W 3"]
Latents = Float[Array, "b h w c"]
Tokens = Float[Array, "b l d"]


@dataclass(frozen=True)
class DiffuseToChoose:
    """The model: sizes, a type for the arithmetic, and pure methods over the parameters.

    Attributes:
        config: Sizes of every network.
        dtype: Type of the arithmetic; parameters, predictions, latents and images are float32.
        remat: What the backward passes of U-Net, hint encoder, decoder and VGG compute again; results are the same.
    """

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    remat: Remat = "none"

    # ------------------------------------------------------------------------------------------------ the networks

    @property
    def unet(self) -> UNet2DConditionModel:
        """Main U-Net."""
        return UNet2DConditionModel(self.config.unet, self.dtype, self.remat)

    @property
    def hint_encoder(self) -> HintEncoder:
        """Replica of the U-Net's encoder and middle."""
        return HintEncoder(self.config.unet, self.dtype, self.remat)

    @property
    def hint_adapter(self) -> HintAdapter:
        """Convolutions from the hint's pixels to latents."""
        return HintAdapter(self.config, self.dtype)

    @property
    def fusion(self) -> Fusion:
        """FiLM layers, or the fusion that stands in their place."""
        unet = self.config.unet
        heads, groups = unet.num_attention_heads, unet.norm_num_groups
        return Fusion(self.config.fusion, feature_channels(unet), self.dtype, heads, groups)

    @property
    def reference_projection(self) -> nn.Module:
        """From the reference encoder's width to the cross-attention's."""
        return conditioning.reference_projection(self.config, self.dtype)

    @property
    def vae(self) -> AutoencoderKL | AutoencoderTiny | PatchAutoencoder:
        """Autoencoder."""
        if isinstance(self.config.vae, AutoencoderKLConfig):
            return AutoencoderKL(self.config.vae, self.dtype, self.remat)
        if isinstance(self.config.vae, AutoencoderTinyConfig):
            return AutoencoderTiny(self.config.vae, self.dtype)
        return PatchAutoencoder(self.config.vae, self.dtype)

    @property
    def reference_encoder(self) -> Dinov2Model | CLIPVisionModel | CLIPTextModel:
        """Encoder of the reference photo, or of prompts."""
        encoder = self.config.reference_encoder
        if isinstance(encoder, CLIPTextConfig):
            return CLIPTextModel(encoder, self.dtype)
        if isinstance(encoder, CLIPVisionConfig):
            return CLIPVisionModel(encoder, self.dtype)
        return Dinov2Model(encoder, self.dtype)

    @property
    def vgg(self) -> VGG:
        """Network of the perceptual loss."""
        return VGG(self.config.vgg, self.dtype, self.remat)

    @property
    def hed(self) -> ControlNetHED:
        """Network of the hint's edges."""
        return ControlNetHED(self.config.hed, self.dtype)

    @property
    def taesd(self) -> AutoencoderTiny:
        """The small autoencoder for the same latents that may decode for the perceptual loss."""
        return AutoencoderTiny(self.config.taesd, self.dtype)

    @property
    def has_hint(self) -> bool:
        """Whether there is a hint path; without one the model is Paint by Example."""
        return self.config.hint.kind != "none"

    @property
    def has_adapter(self) -> bool:
        """Whether the hint is pixels, which an adapter brings to the latents' size; without one it is latents."""
        return self.config.hint.kind not in ("none", "latent")

    # ------------------------------------------------------------------------------------------------- parameters

    def shapes(self) -> dict[str, Any]:
        """Shapes and types of all parameters, as `jax.ShapeDtypeStruct`, without allocating or compiling anything."""
        # A copy: callers take networks out.
        return jax.tree.map(lambda leaf: leaf, _traced_shapes(DiffuseToChoose(self.config)))

    def taesd_shapes(self) -> dict[str, Any]:
        """As `shapes`, of TAESD alone, which is no part of the model."""
        size = self.config.taesd.factor
        shapes = _shapes(AutoencoderTiny(self.config.taesd), _spec(1, size, size, 3))
        return jax.tree.map(lambda leaf: leaf, shapes)

    def _trace_shapes(self) -> dict[str, Any]:
        """What `shapes` returns; takes seconds."""
        config = self.config
        width = config.unet.cross_attention_dim
        latent = config.unet.downsampling
        # Parameters do not depend on the images' size, except for the reference encoder's positions.
        pixels = max(latent * config.vae.factor, 2 ** len(config.vgg.block_channels))
        image = _spec(1, pixels, pixels, 3)
        time, tokens = _spec(1), _spec(1, 1, width)
        shapes = {"unet": _shapes(self.unet, _spec(1, latent, latent, config.unet.in_channels), time, tokens)}
        if config.prompted:
            prompt = _spec(1, config.num_reference_tokens, width)
            shapes["prompts"] = {"product": prompt, "class": prompt}
            shapes["null_tokens"] = {"embedding": prompt}
            shapes["reference_encoder"] = _shapes(self.reference_encoder, jax.ShapeDtypeStruct((1, 1), jnp.int32))
        else:
            reference = config.reference_size
            features = _spec(1, 1, config.reference_encoder.hidden_size)
            shapes["reference_projection"] = _shapes(self.reference_projection, features)
            shapes["null_tokens"] = {"embedding": _spec(1, 1, width)}
            shapes["reference_encoder"] = _shapes(self.reference_encoder, _spec(1, reference, reference, 3))
        shapes |= {"vae": _shapes(self.vae, image), "vgg": _shapes(self.vgg, image)}
        if self.has_hint:
            places = tuple(_spec(1, 1, 1, channels) for channels in feature_channels(config.unet))
            inputs = _spec(1, latent, latent, config.vae.latent_channels)
            if self.has_adapter:
                shapes["hint_adapter"] = _shapes(self.hint_adapter, image)
            shapes["hint_encoder"] = _shapes(self.hint_encoder, inputs, time, tokens)
            shapes["fusion"] = _shapes(self.fusion, places)
        if config.hint.kind == "hed":
            edged = 2 ** (len(config.hed.block_channels) - 1)
            shapes["hed"] = _shapes(self.hed, _spec(1, edged, edged, 3))
        return shapes

    def init(self, key: Key[Array, ""], networks: Collection[str] | None = None) -> dict[str, Any]:
        """First parameters, as numpy arrays on the host.

        The hint encoder starts as a copy of the U-Net's encoder and middle (the paper's "trainable replica"); the last
        layer of the adapter and the last ones of the fusion start at zero, hence the hint without effect.

        Args:
            key: Draws all of them.
            networks: Draw these only (`hint_encoder` needs `unet`); None draws all.
        """
        last = len(self.config.hint.adapter_channels)
        rules = ((rf"^hint_adapter/convs_{last}/kernel$", "zeros"), *RULES)
        shapes = {name: tree for name, tree in self.shapes().items() if networks is None or name in networks}
        replicate = shapes.pop("hint_encoder", None) is not None
        params = initialize(shapes, key, rules)
        if replicate:
            params["hint_encoder"] = replicate_encoder(params["unet"], self.config.vae.latent_channels)
        return params

    # ----------------------------------------------------------------------------------------------------- latents

    def vae_posterior(self, params: Params, images: Images) -> tuple[Latents, Latents]:
        """Mean and log-variance of the unscaled latents of images in [-1, 1]."""
        return _apply(self.vae, params["vae"], images, method="encode")

    def vae_decode(self, params: Params, latents: Latents) -> Images:
        """Images, nominally in [-1, 1], from unscaled latents."""
        return _apply(self.vae, params["vae"], latents, method="decode")

    def encode_images(
        self, params: Params, images: Images, key: Key[Array, ""] | Key[Array, " b"] | None = None
    ) -> Latents:
        """Scaled latents of images in [-1, 1].

        Args:
            params: Needs `vae`.
            images: Height and width divisible by the autoencoder's factor.
            key: Sample the posterior with one key, or one per image (typed keys); None takes the mode.
        """
        mean, logvar = self.vae_posterior(params, images)
        if key is None:
            return scale(mean, self.config.vae)
        keys = jax.random.split(key, mean.shape[0]) if key.ndim == 0 else key
        return scale(sample_posterior(keys, mean, logvar), self.config.vae)

    def decode_taesd(self, params: Params, latents: Latents) -> Images:
        """As `decode_latents`, by TAESD, whose latents are the scaled ones; needs `taesd`."""
        return _apply(self.taesd, params["taesd"], unscale(latents, self.config.taesd), method="decode")

    def decode_latents(self, params: Params, latents: Latents) -> Images:
        """Images, nominally in [-1, 1] but not clipped, from scaled latents."""
        return self.vae_decode(params, unscale(latents, self.config.vae))

    def vgg_features(self, params: Params, images: Images) -> list[Feature]:
        """Features for the perceptual loss of images in [-1, 1]."""
        return _apply(self.vgg, params["vgg"], (images + 1) / 2)

    # ------------------------------------------------------------------------------------------------ conditioning

    def reference_features(self, params: Params, reference: Images) -> Float[Array, "b l hidden"]:
        """The reference encoder's tokens, after its last norm, of references that `normalize_batch` normalised.

        With `reference.tokens = cls` the first of them alone.
        """
        method = "normalized_tokens" if isinstance(self.config.reference_encoder, CLIPVisionConfig) else None
        features = _apply(self.reference_encoder, params["reference_encoder"], reference, method=method)
        return features[:, :1] if self.config.reference.tokens == "cls" else features

    def project(self, params: Params, features: Float[Array, "b l hidden"]) -> Tokens:
        """The reference encoder's tokens, at the cross-attention's width."""
        return _apply(self.reference_projection, params["reference_projection"], features)

    def encode_reference(self, params: Params, reference: Images) -> Tokens:
        """Tokens for the cross-attention; `project` after `reference_features`."""
        return self.project(params, self.reference_features(params, reference))

    def encode_prompts(self, params: Params, token_ids: Int[Array, "b l"]) -> Tokens:
        """Tokens for the cross-attention from prompts' ids; needs `reference_encoder`, a text encoder.

        Args:
            params: All networks, or that one.
            token_ids: As Stable Diffusion pads them, to the encoder's full length.
        """
        return _apply(self.reference_encoder, params["reference_encoder"], token_ids)[0]

    def prompts(self, params: Params, prior: Num[Array, " b"]) -> Tokens:
        """Each sample's prompt, encoded before training: the product's, or where `prior` is 1 its class's.

        Needs `prompts` alone.
        """
        stored = params["prompts"]
        return conditioning.choose_prompts(stored["product"], stored["class"], prior).astype(self.dtype)

    def null_tokens(self, params: Params, tokens: Tokens) -> Tokens:
        """The learned null vector at every position of `tokens`; of a model with prompts, the empty prompt's tokens."""
        return conditioning.null_like(tokens, params["null_tokens"]["embedding"])

    def drop_tokens(self, params: Params, tokens: Tokens, keep: Float[Array, " b"]) -> Tokens:
        """`tokens` where `keep` is 1, the null tokens where it is 0."""
        return conditioning.drop_tokens(tokens, params["null_tokens"]["embedding"], keep)

    # -------------------------------------------------------------------------------------------------------- hint

    def hint_inputs(self, params: Params, hint: Images, masked_latents: Latents) -> Latents:
        """What the hint encoder reads; `hint` is in [0, 1], what `dtc_jax.data.hints.finish_hint` made of the canvas.

        adapter(hint) + masked latents, or of the hint's edges; of the scene with the reference in it, its latents.
        """
        kind = self.config.hint.kind
        if kind == "latent":
            # Neither this nor the edges' network is trained.
            return jax.lax.stop_gradient(self.encode_images(params, 2 * hint - 1))
        if kind == "hed":
            edges = jax.lax.stop_gradient(_apply(self.hed, params["hed"], hint))
            hint = jnp.repeat(edges, 3, axis=-1)
        return _apply(self.hint_adapter, params["hint_adapter"], hint) + masked_latents

    def encode_hint(
        self, params: Params, inputs: Latents, timesteps: Num[Array, " b"], tokens: Conditioning
    ) -> tuple[Feature, ...]:
        """The hint encoder on what `hint_inputs` returns; with `hint.time = fixed` the timesteps do not count."""
        if self.config.hint.time == "fixed":
            timesteps = jnp.zeros_like(timesteps)
        return _apply(self.hint_encoder, params["hint_encoder"], inputs, timesteps, tokens)

    def hint_features(
        self, params: Params, hint: Images, masked_latents: Latents, timesteps: Num[Array, " b"], tokens: Tokens
    ) -> tuple[Feature, ...] | None:
        """Features of the hint for every skip and the middle; None if the model has no hint path.

        The noisy latents are no argument: with a fixed timestep the features are the same at every sampling step.
        """
        if not self.has_hint:
            return None
        return self.encode_hint(params, self.hint_inputs(params, hint, masked_latents), timesteps, tokens)

    def modulations(
        self,
        params: Params,
        features: Sequence[Feature] | None,
        keep: Float[Array, " b"] | None = None,
    ) -> list[Modulation] | None:
        """What the fusion makes of the hint (FiLM: gamma and beta), for skips and middle; None without features.

        Args:
            params: Needs `fusion`.
            features: From `hint_features`.
            keep: 1 keeps a sample's hint, 0 drops it: fusion leaves that sample as it is.
        """
        if features is None:
            return None
        modulations = _apply(self.fusion, params["fusion"], features)
        return modulations if keep is None else keep_modulations(modulations, keep)

    # -------------------------------------------------------------------------------------------------- prediction

    def contexts(
        self,
        params: Params,
        tokens: Tokens,
        null: Float[Array, "images n d"] | None,
        network: Literal["unet", "hint_encoder"] = "unet",
    ) -> tuple[tuple[Context, ...], ...]:
        """What a network's cross-attentions make of the tokens, for `predict` or `encode_hint` in their place.

        Args:
            params: Needs the network.
            tokens: From `encode_reference`, of each case.
            null: The null tokens (one vector stands for any number), for each image, if unconditional rows are wanted.
            network: The U-Net or the hint encoder.
        """
        module = self.unet if network == "unet" else self.hint_encoder
        return _apply(module, params[network], tokens, null, method="contexts")

    def embed_time(self, params: Params, timesteps: Num[Array, " b"]) -> Float[Array, "b t"]:
        """The U-Net's time embedding of timesteps in [0, T)."""
        return _apply(self.unet, params["unet"], timesteps, method="embed_time")

    def predict(
        self,
        params: Params,
        noisy_latents: Latents,
        mask_latent: Float[Array, "b h w 1"],
        masked_latents: Latents,
        timesteps: Num[Array, " b"],
        tokens: Conditioning,
        modulations: Sequence[Modulation] | None = None,
        temb: Float[Array, "b2 t"] | None = None,
    ) -> Float[Array, "b3 h w c"]:
        """The U-Net's output (noise, v or x0, whatever it was trained for), float32.

        Args:
            params: Needs `unet`, and `fusion` where it is cross-attention.
            noisy_latents: z_t.
            mask_latent: The mask at the latents' size, 1 = fill.
            masked_latents: Scaled latents of the scene without the masked region.
            timesteps: In [0, T), one per sample.
            tokens: From `encode_reference`, or what the U-Net's `contexts` made of them.
            modulations: From `modulations`; None for no hint.
            temb: From the U-Net's `embed_time`, in place of the timesteps.
        """
        fused: Sequence[Modulation | Fuse] | None = modulations
        if modulations is not None and self.config.fusion.kind == "cross_attention":
            fused = [self._attention(params, index, part) for index, part in enumerate(modulations)]
        if self.config.unet.mask_channel == "keep":
            mask_latent = 1 - mask_latent
        # The order of Stable Diffusion's inpainting model; Paint by Example has the mask last.
        inputs = jnp.concatenate([noisy_latents, mask_latent, masked_latents], axis=-1)
        return _apply(self.unet, params["unet"], inputs, timesteps, tokens, fused, temb)

    def _attention(self, params: Params, index: int, keys_values: Modulation) -> Fuse:
        """The fusion's cross-attention at one place, as a function of the U-Net's feature there."""
        fusion = self.fusion

        def attend(x: Feature) -> Feature:
            return _apply(fusion, params["fusion"], x, keys_values, index, method="attend")

        return attend


@functools.lru_cache(maxsize=16)
def _traced_shapes(model: DiffuseToChoose) -> dict[str, Any]:
    return model._trace_shapes()


def _spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@functools.lru_cache(maxsize=64)
def _shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """Shapes of a module's parameters, by tracing alone; kept, because models differ in few of their networks."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _apply(module: nn.Module, params: Params, *inputs: Any, method: str | None = None) -> Any:
    return module.apply({"params": params}, *inputs, method=method)
