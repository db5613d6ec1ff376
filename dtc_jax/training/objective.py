"""What the three stages minimise.

An `Objective` is a pure function `(params, batch, key, step) -> (loss, metrics)` over the nested parameter dict; which
parameters it is differentiated by is the step's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.diffusion.parameterization import predict_x0, training_target
from dtc_jax.diffusion.randomness import per_sample_keys, per_sample_normal
from dtc_jax.diffusion.schedule import add_noise, make_schedule
from dtc_jax.diffusion.timesteps import sample_timesteps
from dtc_jax.models.autoencoder_kl import sample_posterior
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch
from dtc_jax.models.vgg import perceptual_distance
from dtc_jax.training.classifier import classification_losses, heads
from dtc_jax.training.conditions import condition_dropout

Batch = Mapping[str, Any]
Metrics = dict[str, Float[Array, ""]]
Objective = Callable[[PyTree, Batch, Key[Array, ""], Int[Array, ""]], tuple[Float[Array, ""], Metrics]]


def make_objective(config: ExperimentConfig, spread: Callable[[Array], Array] = lambda rows: rows) -> Objective:
    """The objective of `config.stage`.

    Args:
        config: The experiment.
        spread: Deals rows that were chosen from the batch out to the devices; it may append rows
            (`sharding.spread_rows`).
    """
    if config.stage == "diffusion":
        return diffusion_objective(config, spread)
    makers = {"autoencoder": autoencoder_objective, "vgg": vgg_objective}
    return makers[config.stage](config)


def diffusion_objective(config: ExperimentConfig, spread: Callable[[Array], Array] = lambda rows: rows) -> Objective:
    """Diffusion loss plus lambda times the perceptual loss of the decoded x0_hat, in one U-Net pass (paper 3.3).

        loss = mean |target - prediction|^2 + lambda * VGG(decode(x0_hat), scene)

    Noise, timestep, dropout and posterior are functions of (key, step, sample index) alone, so that the same global
    batch gives the same loss on any number of devices.
    """
    model = DiffuseToChoose(config.model, dtype=jnp.dtype(config.training.compute_dtype))
    diffusion = config.diffusion
    schedule = make_schedule(
        diffusion.beta_schedule, diffusion.num_train_timesteps, diffusion.beta_start, diffusion.beta_end
    )
    kind = diffusion.prediction_type
    factor = config.model.vae.factor

    def objective(
        params: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        images = normalize_batch(batch, config.model)
        index = batch["index"]
        step_key = jax.random.fold_in(key, step)
        keys = jax.vmap(lambda k: jax.random.split(k, 3))(per_sample_keys(step_key, index))
        noise_keys, posterior_keys, dropout_keys = keys[:, 0], keys[:, 1], keys[:, 2]
        timesteps = sample_timesteps(
            step_key,
            index,
            diffusion.num_train_timesteps,
            stratified=config.loss.stratified_timesteps,
            shift=config.loss.timestep_shift,
        )

        # The autoencoder is frozen: nothing upstream of the latents needs a gradient.
        scene, mask = images["scene"], images["mask"]
        latents = jax.lax.stop_gradient(model.encode_images(params, scene, posterior_keys))
        masked_latents = jax.lax.stop_gradient(model.encode_images(params, masked_scene(scene, mask)))
        mask_latent = latent_mask(mask, factor)
        noise = per_sample_normal(noise_keys, latents.shape[1:])
        noisy_latents = add_noise(schedule, latents, noise, timesteps)

        keep_tokens, keep_hint = condition_dropout(jax.vmap(jax.random.uniform)(dropout_keys), config.loss)
        tokens = model.drop_tokens(params, model.encode_reference(params, images["reference"]), keep_tokens)
        modulations = None
        if config.model.hint.kind != "none":
            features = model.hint_features(params, images["hint"], masked_latents, timesteps, tokens)
            modulations = model.modulations(params, features, keep_hint)
        output = model.predict(params, noisy_latents, mask_latent, masked_latents, timesteps, tokens, modulations)

        target = training_target(kind, latents, noise, schedule, timesteps)
        squared_error = jnp.square(output.astype(jnp.float32) - target)
        weight = mask_latent + (1 - mask_latent) * config.loss.outside_weight
        # Each sample counts the same, whatever the size of its mask.
        weight = weight / jnp.mean(weight, axis=(1, 2, 3), keepdims=True)
        diffusion_loss = jnp.mean(weight * squared_error)
        metrics = {"diffusion": diffusion_loss}
        loss = diffusion_loss
        if config.loss.perceptual_weight > 0:
            x0_hat = predict_x0(kind, output.astype(jnp.float32), noisy_latents, schedule, timesteps)
            x0_hat, real = least_noisy(timesteps, config.loss.perceptual_fraction, x0_hat, scene)
            chosen = x0_hat.shape[0]
            x0_hat, real = spread(x0_hat), spread(real)
            decoded = model.decode_latents(params, x0_hat)
            distances = perceptual_distance(model.vgg_features(params, decoded), model.vgg_features(params, real))
            perceptual = jnp.mean(distances[:chosen])
            metrics["perceptual"] = perceptual
            loss = loss + config.loss.perceptual_weight * perceptual
        metrics["loss"] = loss
        return loss, metrics

    return objective


def least_noisy(timesteps: Int[Array, " b"], fraction: float, *arrays: Array) -> tuple[Array, ...]:
    """Of each array [b, ...], the rows with the smallest timesteps: a `fraction` of the batch, at least one."""
    count = max(1, round(fraction * timesteps.shape[0]))
    if count == timesteps.shape[0]:
        return arrays
    chosen = jnp.argsort(timesteps)[:count]
    return tuple(jnp.take(array, chosen, axis=0) for array in arrays)


def autoencoder_objective(config: ExperimentConfig) -> Objective:
    """Reconstruction (mean squared and absolute error) plus a small KL term (Rombach et al., 2022, appendix G).

    Scenes with the masked region greyed are a third of what it sees, since it encodes those too.
    """
    model = DiffuseToChoose(config.model, dtype=jnp.dtype(config.training.compute_dtype))

    def objective(
        params: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        images = normalize_batch(batch, config.model)
        keys = per_sample_keys(jax.random.fold_in(key, step), batch["index"])
        third = (batch["index"] % 3 == 0)[:, None, None, None]
        pictures = jnp.where(third, masked_scene(images["scene"], images["mask"]), images["scene"])
        mean, logvar = model.vae_posterior(params, pictures)
        decoded = model.vae_decode(params, sample_posterior(keys, mean, logvar)).astype(jnp.float32)
        squared = jnp.mean(jnp.square(decoded - pictures))
        absolute = jnp.mean(jnp.abs(decoded - pictures))
        kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        loss = squared + config.loss.absolute_weight * absolute + config.loss.kl_weight * kl
        # Images are in [-1, 1]: a range of 2, so the peak is 4 in squared error.
        return loss, {"loss": loss, "psnr": 10 * jnp.log10(4.0 / squared), "kl": kl, "absolute": absolute}

    return objective


def vgg_objective(config: ExperimentConfig) -> Objective:
    """Cross-entropy of the generator's own labels, read from the scene: pretraining for the tiny VGG."""
    model = DiffuseToChoose(config.model, dtype=jnp.dtype(config.training.compute_dtype))

    def objective(
        params: PyTree, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        images = normalize_batch(batch, config.model)
        features = model.vgg.apply({"params": params["vgg"]}, (images["scene"] + 1) / 2, method="final_features")
        logits: Any = heads(dtype=model.dtype).apply({"params": params["heads"]}, features)
        loss, accuracy = classification_losses(logits, batch["labels"])
        return loss, {"loss": loss, **accuracy}

    return objective
