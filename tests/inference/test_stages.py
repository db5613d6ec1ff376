"""The sampler that computes all that it can before the loop, against everything in the loop."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import DiffusionConfig, FusionConfig, HintConfig, ModelConfig
from dtc_jax.diffusion import scaled_linear_schedule
from dtc_jax.inference import stages
from dtc_jax.inference.settings import SamplerSettings
from dtc_jax.inference.stages import Scene
from dtc_jax.models.denoiser import Denoiser
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from tests.models.trees import trained_tree

STEPS, SCALE = 4, 2.0
# The compiler's passes over machine code take longer than these runs do.
compiled = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def model(time: str, fusion: str = "film") -> ModelConfig:
    hint = HintConfig(adapter_channels=(4, 4, 8), time=time)  # type: ignore[arg-type]
    return dataclasses.replace(presets.test(), hint=hint, fusion=FusionConfig(kind=fusion))  # type: ignore[arg-type]


def settings_of(time: str, guidance: str, fusion: str = "film") -> SamplerSettings:
    return SamplerSettings(
        model=model(time, fusion),
        diffusion=DiffusionConfig(),
        num_inference_steps=STEPS,
        guidance=guidance != "none",
        unconditional="both" if guidance == "both" else "tokens",
    )


@lru_cache
def params_of(fusion: str) -> dict[str, Any]:
    """Nothing is zero, so that every part has an effect."""
    return trained_tree(DiffuseToChoose(model("timestep", fusion)).shapes())


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return params_of("film")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    """Two cases, their references and scenes encoded already, and noise for two images of each."""
    random = np.random.default_rng(0)
    return {
        "scene": Scene(
            random.integers(0, 2, (2, 8, 8, 1)).astype(np.float32), random.standard_normal((2, 8, 8, 4), np.float32)
        ),
        "tokens": 3 * random.standard_normal((2, 5, 8), np.float32),
        "hint": random.integers(0, 256, (2, 16, 16, 3), np.uint8),
        "noise": random.standard_normal((4, 8, 8, 4), np.float32),
    }


@partial(compiled, static_argnames="fusion")
def plain_prediction(
    params: dict, latents: Any, timestep: Any, scene: Scene, tokens: Any, hint: Any, keep_hint: Any, fusion: str
) -> jax.Array:
    """One branch, the hint encoder at this very step, keys and values of every token, one row for every image."""
    net, times = DiffuseToChoose(model("timestep", fusion)), jnp.full(len(latents), timestep)
    hint_time = jnp.where(keep_hint == 2, 0, times)
    features = net.hint_features(params, hint / jnp.float32(255), scene.masked_latents, hint_time, tokens)
    modulations = net.modulations(params, features, jnp.full(len(latents), keep_hint > 0, jnp.float32))
    return net.predict(params, latents, *scene, times, tokens, modulations)


def plain(params: dict, inputs: dict[str, Any], images: int, time: str, guidance: str, fusion: str) -> np.ndarray:
    """DDIM (Song et al., equation 12), written out over `plain_prediction`."""
    scene, tokens, hint = (
        jax.tree.map(lambda x: np.repeat(x, images, axis=0), inputs[name]) for name in ("scene", "tokens", "hint")
    )
    latents, kept = inputs["noise"][: 2 * images], 2.0 if time == "fixed" else 1.0
    null = np.broadcast_to(params["null_tokens"]["embedding"], tokens.shape)
    abar = scaled_linear_schedule().alphas_cumprod
    for timestep, previous in [(751, 501), (501, 251), (251, 1), (1, 0)]:
        noise = plain_prediction(params, latents, timestep, scene, tokens, hint, kept, fusion)
        if guidance != "none":
            without_hint = 0.0 if guidance == "both" else kept
            without = plain_prediction(params, latents, timestep, scene, null, hint, without_hint, fusion)
            noise = without + SCALE * (noise - without)
        x0 = (latents - np.sqrt(1 - abar[timestep]) * noise) / np.sqrt(abar[timestep])
        alpha = abar[previous] if previous else abar[0]
        latents = np.float32(np.sqrt(alpha) * x0 + np.sqrt(1 - alpha) * noise)
    return latents


@pytest.mark.parametrize(
    ("time", "guidance", "images", "steps_at_once", "fusion"),
    [
        ("timestep", "tokens", 2, 2, "film"),
        ("timestep", "both", 1, 1, "film"),
        ("fixed", "tokens", 1, 4, "film"),
        ("fixed", "both", 1, 4, "film"),
        ("timestep", "none", 1, 2, "film"),
        ("timestep", "both", 2, 2, "cross_attention"),
        pytest.param("timestep", "both", 2, 2, "addition", marks=pytest.mark.slow),
    ],
)
def test_fast_is_plain(
    inputs: dict[str, Any], time: str, guidance: str, images: int, steps_at_once: int, fusion: str
) -> None:
    settings, sizes, params = settings_of(time, guidance, fusion), [], params_of(fusion)

    @compiled
    def fast(params: dict, inputs: dict[str, Any], guidance_scale: Any) -> jax.Array:
        scene, tokens, hint = inputs["scene"], inputs["tokens"], inputs["hint"]
        conditions = stages.condition(params, scene, tokens, hint, settings, images_per_case=images)
        steps, keys = stages.steps_of(settings), jax.random.split(jax.random.key(0), 2 * images)
        state = stages.start(conditions, keys, settings)
        state = state._replace(latents=inputs["noise"][: 2 * images])
        one = jax.eval_shape(Denoiser(stages.model_of(settings), params, conditions).step_inputs, steps.timestep[:1])
        each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one.modulations))
        # Not quite enough for a step more.
        hint_bytes = max((steps_at_once + 1) * each - 1, 0)
        sizes.append(stages.steps_at_once(Denoiser(stages.model_of(settings), params, conditions), STEPS, hint_bytes))
        return stages.advance(params, conditions, state, keys, guidance_scale, steps, settings, hint_bytes).latents

    found, expected = fast(params, inputs, SCALE), plain(params, inputs, images, time, guidance, fusion)
    assert sizes == [steps_at_once]
    assert np.isfinite(expected).all() and expected.std() > 0.1
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_steps_that_are_not_guided(params: dict, inputs: dict[str, Any]) -> None:
    """`Denoiser.conditional` takes its own part of what was computed for both branches."""
    settings = settings_of("timestep", "tokens")

    @compiled
    def run(params: dict, inputs: dict[str, Any]) -> jax.Array:
        conditions = stages.condition(params, inputs["scene"], inputs["tokens"], inputs["hint"], settings, 2)
        bound = Denoiser(stages.model_of(settings), params, conditions)
        step_input = jax.tree.map(lambda x: x[1], bound.step_inputs(jnp.array([751, 501])))
        output, unconditional = bound.conditional(inputs["noise"], jnp.int32(501), step_input)
        assert unconditional is None
        return output

    scene, tokens, hint = (
        jax.tree.map(lambda x: np.repeat(x, 2, axis=0), inputs[name]) for name in ("scene", "tokens", "hint")
    )
    expected = plain_prediction(params, inputs["noise"], 501, scene, tokens, hint, 1.0, "film")
    found = run(params, inputs)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
