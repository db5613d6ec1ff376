"""This package's sampler, measured: run by `python -m dtc_jax.bench sample` as a process of its own.

Reads a request as JSON from the standard input and prints results as one line of JSON.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtc_jax.bench.sampling_inputs import forget_peak_memory, made_up_cases, made_up_params, peak_memory
from dtc_jax.config import ExperimentConfig, config_from_json
from dtc_jax.diffusion import per_sample_normal
from dtc_jax.inference import stages
from dtc_jax.inference.generate import generate, image_keys
from dtc_jax.inference.runtime import release_freed_memory
from dtc_jax.inference.settings import SamplerSettings
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.flops import count_flops


def settings_of(config: ExperimentConfig, steps: int, dtype: str) -> SamplerSettings:
    """The settings that are measured: DDIM with guidance, as the PyTorch side has it."""
    return SamplerSettings(
        model=config.model,
        diffusion=config.diffusion,
        num_inference_steps=steps,
        unconditional=config.sampling.unconditional,
        timestep_spacing=config.sampling.timestep_spacing,
        steps_offset=config.sampling.steps_offset,
        dtype=jnp.dtype(dtype),
    )


def initial_noise(config: ExperimentConfig, count: int) -> np.ndarray:
    """The noise from which `generate` starts, for PyTorch."""
    split = jax.vmap(jax.random.split)(image_keys(0, count))
    size = config.model.latent_size
    return np.asarray(per_sample_normal(split[:, 0], (size, size, config.model.vae.latent_channels)))


def timed(function: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of wall clock and of CPU time, of each call."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Compile and time the whole sampler, then its stages."""
    config = config_from_json(request["config"])
    settings = settings_of(config, request["steps"], request["dtype"])
    device = jax.devices()[0]
    shapes = DiffuseToChoose(config.model).shapes()
    params: dict[str, Any] = {}
    for name in [name for name in shapes if name != "vgg"]:
        cast = lambda leaf: jax.device_put(jnp.asarray(leaf, settings.dtype), device)  # noqa: E731
        params[name] = jax.tree.map(cast, made_up_params(shapes[name], name))
    cases, images = request["batch_size"], request["batch_size"] * request["images_per_case"]
    batch = jax.device_put(made_up_cases(config.model, cases), device)
    keys, scale = image_keys(0, images), jnp.float32(config.sampling.guidance_scale)
    flops = count_flops(functools.partial(generate, settings=settings), params, batch, keys, scale)
    forget_peak_memory()
    started = time.perf_counter()
    whole = jax.jit(generate, static_argnames="settings").lower(params, batch, keys, scale, settings).compile()
    compile_seconds = time.perf_counter() - started
    release_freed_memory()  # as `Pipeline` does
    result = np.asarray(whole(params, batch, keys, scale))
    walls, cpus = timed(lambda: whole(params, batch, keys, scale), request["repeats"])
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use") or peak_memory()
    return {
        "rows": {
            "jax": {
                "seconds": min(walls),
                "all_seconds": walls,
                "cpu_seconds": min(cpus),
                "memory": memory,
                "stages": in_stages(params, batch, keys, settings, request["repeats"]) if request["stages"] else {},
            }
        },
        "compile_seconds": compile_seconds,
        "flops": flops,
        "image": [float(value) for value in result.mean((1, 2, 3))],
        "checksum": [float(value) for value in result[:, ::8, ::8].reshape(-1)[:4096]],
        "device": device.device_kind if device.platform != "cpu" else "cpu",
        "versions": {"jax": jax.__version__},
    }


def in_stages(
    params: dict[str, Any], batch: dict[str, Any], keys: Any, settings: SamplerSettings, repeats: int
) -> dict[str, float]:
    """Seconds of each stage, compiled alone; `hint` and `denoise` are those of one step."""
    seconds: dict[str, float] = {}

    def stage(name: str, function: Callable[[], Any]) -> Any:
        value = jax.block_until_ready(function())
        seconds[name] = min(timed(function, repeats)[0])
        return value

    scene = stage("scene", lambda: stages.encode_scene(params, batch["scene"], batch["mask"], settings))
    tokens = stage("reference", lambda: stages.encode_reference(params, batch["reference"], settings))
    per_case = keys.shape[0] // batch["mask"].shape[0]
    conditions = stage(
        "condition", lambda: stages.condition(params, scene, tokens, batch["hint"], settings, images_per_case=per_case)
    )
    state = stages.start(conditions, keys, settings)
    times = stages.steps_of(settings).timestep
    modulations = conditions.modulations
    if conditions.hint is not None and modulations is None:
        of_one = stage("hint", lambda: stages.hint_features(params, conditions, times[:1], settings))
        modulations = jax.tree.map(lambda part: part[0], of_one)
    stage("denoise", lambda: stages.denoise(params, conditions, state.latents, times[0], settings, modulations))
    stage("decode", lambda: stages.decode(params, state.latents, settings))
    return seconds


def main() -> int:
    """Answer one request; returns the exit code."""
    jax.config.update("jax_enable_compilation_cache", False)  # what is measured is a first compilation
    print(json.dumps(measure(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
