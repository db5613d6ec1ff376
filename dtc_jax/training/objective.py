"""What the three stages minimise.

An `Objective` has two parts: what is drawn for each sample of the global batch (noise, timestep, what it loses, what it
weighs), and the loss of any part of that batch, which is a sum over its samples. So that a batch that is split over
devices, or that goes through the networks in several parts, has the same loss as the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.data.cached import CACHED
from dtc_jax.diffusion.parameterization import min_snr_weight, predict_x0, training_target
from dtc_jax.diffusion.randomness import per_sample_keys, per_sample_normal
from dtc_jax.diffusion.schedule import add_noise, make_schedule
from dtc_jax.diffusion.timesteps import sample_timesteps
from dtc_jax.models.autoencoder_kl import sample_posterior, scale
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose, Latents, Tokens
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch
from dtc_jax.training.classifier import classification_losses, heads
from dtc_jax.training.conditions import condition_dropout
from dtc_jax.training.perceptual import least_noisy, perceptual_groups, perceptual_shares, perceptual_term

Batch = Mapping[str, Any]
"""Arrays whose leading axis is the sample. For the diffusion model `scene` [b, H, W, 3], `mask` [b, H, W, 1],
`reference` [b, r, r, 3], `hint` [b, H, W, 3] (all uint8) and `index` [b] (uint32); and, computed before, in any
floating-point type,

- `prior` [b] (uint8), in place of `reference` and `hint` where the condition is a prompt: 1 for a picture of the class,
  0 for a photo of the product;
- `tokens` [b, l, hidden], what `DiffuseToChoose.reference_features` returns, in place of `reference`;
- `latent_mean` and `latent_logvar` [b, h, w, c], what `DiffuseToChoose.vae_posterior` returns for the scene
  (unscaled), and `masked_latents` [b, h, w, c], what `encode_images` returns for the masked scene (scaled, the mode);
  `scene` is then read by the perceptual term alone.
"""
Metrics = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Objective:
    """`objective(params, batch, key, step) -> (loss, metrics)`, a pure function over the nested parameter dict; which
    parameters it is differentiated by is the step's business.

    Attributes:
        draw: `(batch, key, step) -> batch` with what is random for each sample and what the sample weighs in the loss;
            wants the global batch.
        loss: `(params, drawn) -> (loss, metrics)`, sums over the samples of any part of what `draw` returned, if the
            part is made of whole groups; a sum over parts is the whole batch's.
        group: How many neighbouring samples of a batch of this size belong together.
        finish: From summed metrics to those that are reported.
    """

    draw: Callable[[Batch, Key[Array, ""], Int[Array, ""]], Batch]
    loss: Callable[[PyTree, Batch], tuple[Float[Array, ""], Metrics]]
    group: Callable[[int], int] = lambda batch_size: 1
    finish: Callable[[Metrics], Metrics] = lambda metrics: metrics

    def __call__(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        loss, metrics = self.loss(params, self.draw(batch, key, step))
        return loss, self.finish(metrics)


def make_objective(config: ExperimentConfig) -> Objective:
    """The objective of `config.stage`."""
    makers = {"diffusion": diffusion_objective, "autoencoder": autoencoder_objective, "vgg": vgg_objective}
    return makers[config.stage](config)


def make_model(config: ExperimentConfig) -> DiffuseToChoose:
    """The networks with the types and the rematerialisation that `config.training` asks for."""
    return DiffuseToChoose(config.model, dtype=jnp.dtype(config.training.compute_dtype), remat=config.training.remat)


def equal_shares(batch: Batch) -> Float[Array, " b"]:
    """1/b for each sample: sums of what is multiplied by it are means."""
    size = batch["index"].shape[0]
    return jnp.full((size,), 1 / size, jnp.float32)


def prior_shares(prior: Num[Array, " b"], weight: float) -> Float[Array, " b"]:
    """What samples weigh with prior preservation: the photos' mean, plus `weight` times the mean of the pictures of the
    class (DreamBooth, equation 2)."""
    pictures = jnp.sum(prior > 0)
    photos = prior.shape[0] - pictures
    # Of none there is no mean, and none that weighs anything.
    one, other = (1 / jnp.maximum(count, 1).astype(jnp.float32) for count in (photos, pictures))
    return jnp.where(prior > 0, weight * other, one)


def diffusion_objective(config: ExperimentConfig) -> Objective:
    """Diffusion loss plus lambda times the perceptual loss of the decoded x0_hat, in one U-Net pass (paper 3.3).

        loss = mean w(t) |target - prediction|^2 + lambda * VGG(decode(x0_hat), scene)

    Noise, timestep, dropout and posterior are functions of (key, step, sample index) alone, so that the same global
    batch gives the same loss on any number of devices.
    """
    model = make_model(config)
    diffusion, options = config.diffusion, config.loss
    schedule = make_schedule(
        diffusion.beta_schedule, diffusion.num_train_timesteps, diffusion.beta_start, diffusion.beta_end
    )
    kind, prompted = diffusion.prediction_type, config.model.prompted
    perceptual = perceptual_term(model, config) if options.perceptual_weight > 0 else None

    def group(batch_size: int) -> int:
        return 1 if perceptual is None else perceptual_groups(batch_size, options.perceptual_fraction)[0]

    def draw(batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Batch:
        for cached, names in CACHED.items():
            missing = [name for name in names if name not in batch]
            if cached in config.data.cached and missing:
                raise ValueError(f"data.cached names {cached}, but the batches have no {', '.join(missing)}")
        index = batch["index"]
        step_key = jax.random.fold_in(key, step)
        keys = jax.vmap(lambda k: jax.random.split(k, 3))(per_sample_keys(step_key, index))
        timesteps = sample_timesteps(
            step_key,
            index,
            diffusion.num_train_timesteps,
            stratified=options.stratified_timesteps,
            shift=options.timestep_shift,
            spread=perceptual_groups(index.shape[0], options.perceptual_fraction)[0],
        )
        drawn = {
            "timestep": timesteps,
            "noise_key": keys[:, 0],
            "posterior_key": keys[:, 1],
            "dropout": jax.vmap(jax.random.uniform)(keys[:, 2]),
            "share": prior_shares(batch["prior"], options.prior_weight) if prompted else equal_shares(batch),
        }
        if perceptual is not None:
            drawn["perceptual_share"] = perceptual_shares(timesteps, options)
        return {**batch, **drawn}

    def loss(params: PyTree, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        images = normalize_batch(batch, config.model)
        timesteps, mask = batch["timestep"], images["mask"]
        latents, masked_latents = scene_latents(model, params, images)
        mask_latent = latent_mask(mask, config.model.vae.factor)
        noise = per_sample_normal(batch["noise_key"], latents.shape[1:])
        noisy_latents = add_noise(schedule, latents, noise, timesteps)

        keep_tokens, keep_hint = condition_dropout(batch["dropout"], options)
        tokens = model.drop_tokens(params, reference_tokens(model, params, images), keep_tokens)
        modulations = None
        if config.model.hint.kind != "none":
            features = model.hint_features(params, images["hint"], masked_latents, timesteps, tokens)
            modulations = model.modulations(params, features, keep_hint)
        output = model.predict(params, noisy_latents, mask_latent, masked_latents, timesteps, tokens, modulations)

        target = training_target(kind, latents, noise, schedule, timesteps)
        squared_error = jnp.square(output.astype(jnp.float32) - target)
        weight = mask_latent + (1 - mask_latent) * options.outside_weight
        # Each sample counts the same, whatever the size of its mask.
        weight = weight / jnp.mean(weight, axis=(1, 2, 3), keepdims=True)
        errors = jnp.mean(weight * squared_error, axis=(1, 2, 3))
        if options.min_snr_gamma is not None:
            errors = errors * min_snr_weight(kind, options.min_snr_gamma, schedule, timesteps)
        total = jnp.sum(batch["share"] * errors)
        metrics = {"diffusion": total}
        if prompted:
            metrics["product"] = jnp.sum(jnp.where(batch["prior"] > 0, 0, batch["share"]) * errors)
        if perceptual is not None:
            x0_hat = predict_x0(kind, output.astype(jnp.float32), noisy_latents, schedule, timesteps)
            parts = (x0_hat, images["scene"], mask, batch["perceptual_share"])
            *decoded, shares = least_noisy(timesteps, options.perceptual_fraction, *parts)
            distance = jnp.sum(shares * perceptual(params, *decoded))
            metrics["perceptual"] = distance
            total = total + options.perceptual_weight * distance
        return total, {**metrics, "loss": total}

    return Objective(draw, loss, group)


def scene_latents(model: DiffuseToChoose, params: PyTree, images: Batch) -> tuple[Latents, Latents]:
    """Scaled latents of the scenes, drawn from their posterior, and of the masked scenes; the batch's, if it has them.

    The autoencoder is frozen: nothing upstream of the latents needs a gradient.
    """
    keys = images["posterior_key"]
    if "latent_mean" in images:
        mean, logvar, masked = (images[name].astype(jnp.float32) for name in CACHED["latents"])
        latents = scale(sample_posterior(keys, mean, logvar), model.config.vae)
    else:
        latents = model.encode_images(params, images["scene"], keys)
        masked = model.encode_images(params, masked_scene(images["scene"], images["mask"]))
    return jax.lax.stop_gradient(latents), jax.lax.stop_gradient(masked)


def reference_tokens(model: DiffuseToChoose, params: PyTree, images: Batch) -> Tokens:
    """Tokens for the cross-attention from the references, or from the encoder's output where the batch has it; or each
    sample's prompt.

    Raises:
        ValueError: that output is another encoder's.
    """
    if model.config.prompted:
        return model.prompts(params, images["prior"])
    if "tokens" not in images:
        return model.encode_reference(params, images["reference"])
    width = model.config.reference_encoder.hidden_size
    found, expected = images["tokens"].shape[1:], (model.config.num_reference_tokens, width)
    if found != expected:
        raise ValueError(f"the batch's tokens are {found[0]}x{found[1]}; this reference encoder makes {expected}")
    return model.project(params, images["tokens"].astype(jnp.float32))


def autoencoder_objective(config: ExperimentConfig) -> Objective:
    """Reconstruction (mean squared and absolute error) plus a small KL term (Rombach et al., 2022, appendix G).

    Scenes with the masked region greyed are a third of what it sees, since it encodes those too.
    """
    model = make_model(config)

    def draw(batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Batch:
        keys = per_sample_keys(jax.random.fold_in(key, step), batch["index"])
        return {**batch, "posterior_key": keys, "share": equal_shares(batch)}

    def loss(params: PyTree, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        images = normalize_batch(batch, config.model)
        third = (batch["index"] % 3 == 0)[:, None, None, None]
        pictures = jnp.where(third, masked_scene(images["scene"], images["mask"]), images["scene"])
        mean, logvar = model.vae_posterior(params, pictures)
        decoded = model.vae_decode(params, sample_posterior(batch["posterior_key"], mean, logvar)).astype(jnp.float32)
        pixels = batch["share"][:, None, None, None]

        def mean_of(values: Array) -> Array:
            return jnp.sum(pixels * jnp.mean(values, axis=(1, 2, 3), keepdims=True))

        squared = mean_of(jnp.square(decoded - pictures))
        absolute = mean_of(jnp.abs(decoded - pictures))
        kl = 0.5 * mean_of(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        total = squared + config.loss.absolute_weight * absolute + config.loss.kl_weight * kl
        return total, {"loss": total, "squared": squared, "kl": kl, "absolute": absolute}

    def finish(metrics: Metrics) -> Metrics:
        rest = {name: value for name, value in metrics.items() if name != "squared"}
        # Images are in [-1, 1]: a range of 2, so the peak is 4 in squared error.
        return {**rest, "psnr": 10 * jnp.log10(4.0 / metrics["squared"])}

    return Objective(draw, loss, finish=finish)


def vgg_objective(config: ExperimentConfig) -> Objective:
    """Cross-entropy of the generator's own labels, read from the scene: pretraining for the tiny VGG."""
    model = make_model(config)

    def draw(batch: Batch, key: Key[Array, ""], step: Int[Array, ""]) -> Batch:
        return {**batch, "share": equal_shares(batch)}

    def loss(params: PyTree, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        images = normalize_batch(batch, config.model)
        features = model.vgg.apply({"params": params["vgg"]}, (images["scene"] + 1) / 2, method="final_features")
        logits: Any = heads(dtype=model.dtype).apply({"params": params["heads"]}, features)
        mean, accuracy = classification_losses(logits, batch["labels"])
        # Means over this part of the batch.
        share = batch["share"].sum()
        return share * mean, {"loss": share * mean, **{name: share * value for name, value in accuracy.items()}}

    return Objective(draw, loss)
