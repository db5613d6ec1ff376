"""Both sides on the same random numbers: our networks in JAX, the exported folder in PyTorch.

PyTorch goes first, network by network and then one whole guided sample, and is forgotten before JAX reads its weights:
at full size both would not fit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtc_jax.config import ExperimentConfig, ModelConfig
from dtc_jax.diffusion import make_schedule, make_solver, sample
from dtc_jax.models.denoiser import denoiser
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.inputs import latent_mask, masked_scene, normalize_batch
from dtc_jax.models.unet import feature_channels
from dtc_jax.weights.checkpoint_source import Checkpoint
from dtc_jax.weights.compare_weights import compare_weights
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.tensors import TensorSource, WeightsError

Arrays = dict[str, np.ndarray]
Outputs = dict[str, list[np.ndarray]]

SAMPLE = "guided sample"


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        name: A network, or the whole sample.
        relative_error: |ours - theirs| / |theirs|, of all outputs together (L2).
        tolerance: What it may be.
        worst: Of a row about weights, the tensor that differs most; empty if none does.
    """

    name: str
    relative_error: float
    tolerance: float
    worst: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within tolerance; NaN is not."""
        return self.relative_error <= self.tolerance


def verify(
    checkpoint: Checkpoint,
    exported: Path,
    *,
    tolerance: float = 1e-5,
    sample_tolerance: float = 1e-3,
    num_inference_steps: int = 5,
    seed: int = 0,
    with_sample: bool = True,
) -> list[Comparison]:
    """Compare a checkpoint with a folder that was exported from it.

    Args:
        checkpoint: Our side.
        exported: Their side.
        tolerance: For every network by itself.
        sample_tolerance: For the whole guided sample.
        num_inference_steps: Solver steps of the sample.
        seed: Of the random inputs.
        with_sample: Whether to draw the whole sample, too.

    Raises:
        WeightsError: PyTorch, diffusers or transformers is not installed; a file or a tensor of the folder is missing,
            damaged or misshapen; or it cannot be loaded or run.
    """
    # First, because it says what is wrong with a folder more clearly than PyTorch does.
    weights = [
        Comparison(f"{row.network} weights", row.error, row.tolerance, row.tensor)
        for row in compare_weights(checkpoint, exported)
    ]
    inputs = random_inputs(checkpoint.config.model, seed)
    steps = num_inference_steps if with_sample else 0
    theirs = _run_pytorch(exported, checkpoint.config, inputs, steps)
    gc.collect()
    ours = _run_jax(checkpoint, inputs, steps)
    return weights + [
        Comparison(name, relative_error(ours[name], theirs[name]), sample_tolerance if name == SAMPLE else tolerance)
        for name in theirs
    ]


def relative_error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """|ours - theirs| / |theirs| in L2, the largest of several outputs; infinite where shapes differ."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return float("inf")
    errors = []
    for our, their in zip(ours, theirs, strict=True):
        difference = np.linalg.norm(our.astype(np.float64) - their.astype(np.float64))
        size = np.linalg.norm(their.astype(np.float64))
        errors.append(float(difference / size) if size else float(difference))
    return max(errors) if not np.isnan(errors).any() else float("nan")


def table(comparisons: Sequence[Comparison]) -> str:
    """The rows as text for people."""
    lines = [f"{'network':28} {'relative error':>14} {'tolerance':>10}"]
    for row in comparisons:
        verdict = "" if row.passed else "  FAILED" + (f" ({row.worst})" if row.worst else "")
        lines.append(f"{row.name:28} {row.relative_error:14.2e} {row.tolerance:10.0e}{verdict}")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- inputs


def random_inputs(config: ModelConfig, seed: int) -> Arrays:
    """Inputs of every network, channels last: batch 2, height and width different, timesteps different."""
    random = np.random.default_rng(seed)
    height, width = latent_size(config)
    factor, latents = config.vae.factor, config.vae.latent_channels
    reference, size = config.reference_size, config.image_size

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    def pixels(*shape: int) -> np.ndarray:
        return random.integers(0, 256, shape, dtype=np.uint8)

    mask = np.zeros((1, size, size, 1), np.uint8)
    mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return {
        "images": random.uniform(-1, 1, (2, height * factor, width * factor, 3)).astype(np.float32),
        "hint": random.uniform(0, 1, (2, height * factor, width * factor, 3)).astype(np.float32),
        "noisy": normal(2, height, width, config.unet.in_channels),
        "latents": normal(2, height, width, latents),
        "timesteps": np.asarray([981, 21], np.int32),
        "tokens": normal(2, 5, config.unet.cross_attention_dim),
        "features": normal(2, 5, config.reference_encoder.hidden_size),
        "reference": normal(2, reference, reference, 3),
        "sample_scene": pixels(1, size, size, 3),
        "sample_hint": pixels(1, size, size, 3) * mask,
        "sample_mask": mask,
        "sample_reference": pixels(1, reference, reference, 3),
        "sample_noise": normal(1, config.latent_size, config.latent_size, latents),
    } | {
        f"hint_feature_{index}": normal(2, 2, 3, channels)
        for index, channels in enumerate(feature_channels(config.unet))
    }


def latent_size(config: ModelConfig) -> tuple[int, int]:
    """Height and width of the latents: at full size the smallest that differ, 8 x 16; of narrow networks larger ones.

    A norm over a few values may divide by next to nothing, and what the two sides round differently then grows beyond
    any tolerance. So the norms of the middle get 64 values or 4 x 6 places, and the latents are at least 8 x 12.
    """
    unet, middle = config.unet, 1
    scale, channels = unet.downsampling, unet.block_out_channels[-1] // unet.norm_num_groups

    def size() -> tuple[int, int]:
        return scale * middle, scale * (middle + max(1, middle // 2))

    while (middle < 4 and size()[0] * size()[1] // scale**2 * channels < 64) or size() < (8, 12):
        middle += 1
    return size()


# ---------------------------------------------------------------------------------------------------------- PyTorch


def _run_pytorch(folder: Path, config: ExperimentConfig, inputs: Arrays, steps: int) -> Outputs:
    pipe = _load_pipeline(folder)
    try:
        return _outputs(pipe, config, inputs, steps)
    except Exception as error:  # the folder brings its own code
        raise WeightsError(f"{folder}: cannot be run in PyTorch ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


def _load_pipeline(folder: Path) -> Any:
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as error:
        raise WeightsError(
            f"verify needs PyTorch, diffusers and transformers (pip install 'dtc-jax[pytorch]'): {error}"
        ) from None
    for library in (diffusers, transformers):  # what they say of their own is no answer to the question
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    try:
        pipe: Any = diffusers.DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
        pipe.to(torch.float32)
    except Exception as error:  # of the libraries, of what they read with, or of the folder's own code
        raise WeightsError(f"{folder}: diffusers cannot load it ({_reason(error)})") from None
    pipe.set_progress_bar_config(disable=True)
    pipe.register_to_config(eta=0.0)  # the two sides draw different noise
    return pipe


def _outputs(pipe: Any, config: ExperimentConfig, inputs: Arrays, steps: int) -> Outputs:
    import torch

    def tensor(name: str) -> Any:
        array = torch.from_numpy(inputs[name])
        return array.permute(0, 3, 1, 2).contiguous() if array.ndim == 4 else array

    def arrays(*outputs: Any) -> list[np.ndarray]:
        last = [output.permute(0, 2, 3, 1) if output.ndim == 4 else output for output in outputs]
        return [output.float().numpy() for output in last]

    results: Outputs = {}
    with torch.no_grad():
        times, tokens = tensor("timesteps"), tensor("tokens")
        results["unet"] = arrays(pipe.unet(tensor("noisy"), times, encoder_hidden_states=tokens).sample)
        results["vae encoder"] = arrays(pipe.encode_image(tensor("images")))
        results["vae decoder"] = arrays(pipe.decode_latents(tensor("latents")))
        results["reference_encoder"] = arrays(pipe.image_encoder(tensor("reference")).last_hidden_state)
        results["reference_projection"] = arrays(pipe.reference_projection(tensor("features")))
        results["null_tokens"] = arrays(pipe.null_tokens(tokens))
        if pipe.hint_encoder is not None:
            results["hint_adapter"] = arrays(pipe.hint_adapter(tensor("hint")))
            results["hint_encoder"] = arrays(*pipe.hint_encoder(tensor("latents"), times, tokens))
            features = [tensor(name) for name in inputs if name.startswith("hint_feature_")]
            results["fusion"] = arrays(*(part for pair in pipe.fusion(features) for part in pair))
        if steps:
            prepared = SimpleNamespace(**{name: inputs[f"sample_{name}"][0] for name in ("scene", "hint", "reference")})
            prepared.mask = inputs["sample_mask"][0, :, :, 0]
            window = pipe.generate(
                prepared,
                num_images=1,
                num_inference_steps=steps,
                guidance_scale=_guidance_scale(config),
                unconditional=config.sampling.unconditional,
                latents=tensor("sample_noise"),
            )
            results[SAMPLE] = [window]
    return results


def _guidance_scale(config: ExperimentConfig) -> float:
    """The model's own, unless that is no guidance at all."""
    return config.sampling.guidance_scale if config.sampling.guidance_scale != 1 else 2.0


# -------------------------------------------------------------------------------------------------------------- JAX


def _run_jax(checkpoint: Checkpoint, inputs: Arrays, steps: int) -> Outputs:
    config = checkpoint.config
    model = DiffuseToChoose(config.model)

    def run(networks: Sequence[str], function: Callable[[Mapping[str, Any]], Any]) -> list[np.ndarray]:
        params = {name: _params(checkpoint.networks[name]) for name in networks}
        # Full precision where the device's default is less.
        with jax.default_matmul_precision("highest"):
            return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(jax.jit(function)(params))]

    x = {name: jnp.asarray(value) for name, value in inputs.items()}
    times, tokens = x["timesteps"], x["tokens"]
    results: Outputs = {
        "unet": run(["unet"], lambda p: model.unet.apply({"params": p["unet"]}, x["noisy"], times, tokens)),
        "vae encoder": run(["vae"], lambda p: model.encode_images(p, x["images"])),
        "vae decoder": run(["vae"], lambda p: model.decode_latents(p, x["latents"])),
        "reference_encoder": run(["reference_encoder"], lambda p: model.reference_features(p, x["reference"])),
        "reference_projection": run(["reference_projection"], lambda p: model.project(p, x["features"])),
        "null_tokens": run(["null_tokens"], lambda p: model.null_tokens(p, tokens)),
    }
    if model.has_hint:
        features = [value for name, value in x.items() if name.startswith("hint_feature_")]
        results["hint_adapter"] = run(
            ["hint_adapter"], lambda p: model.hint_inputs(p, x["hint"], jnp.zeros_like(x["latents"]))
        )
        results["hint_encoder"] = run(["hint_encoder"], lambda p: model.encode_hint(p, x["latents"], times, tokens))
        results["fusion"] = run(["fusion"], lambda p: model.modulations(p, features))
    if steps:
        networks = [name for name in checkpoint.networks if name != "vgg"]
        results[SAMPLE] = run(networks, lambda p: _guided_sample(model, config, p, x, steps))
    return results


def _params(source: TensorSource) -> dict[str, Any]:
    # Onto the device one by one: the host's copies of a whole model would be as large again.
    flat = {path: jnp.asarray(source.read(path), jnp.float32) for path in source.keys()}  # noqa: SIM118
    return unflatten_params(flat)


def _guided_sample(
    model: DiffuseToChoose, config: ExperimentConfig, params: Mapping[str, Any], x: Mapping[str, Any], steps: int
) -> Any:
    batch = {name: x[f"sample_{name}"] for name in ("scene", "hint", "mask", "reference")}
    inputs = normalize_batch(batch, config.model)
    diffusion, sampling = config.diffusion, config.sampling
    masked_latents = model.encode_images(params, masked_scene(inputs["scene"], inputs["mask"]))
    denoise = denoiser(
        model,
        params,
        model.encode_reference(params, inputs["reference"]),
        latent_mask(inputs["mask"], config.model.vae.factor),
        masked_latents,
        inputs["hint"],
        unconditional=sampling.unconditional,
    )
    latents = sample(
        denoise,
        make_schedule(diffusion.beta_schedule, diffusion.num_train_timesteps, diffusion.beta_start, diffusion.beta_end),
        make_solver(sampling.solver),
        diffusion.prediction_type,
        x["sample_noise"],
        jax.random.key(0),
        num_inference_steps=steps,
        spacing=sampling.timestep_spacing,
        steps_offset=sampling.steps_offset,
        guidance_scale=_guidance_scale(config),
        guidance_rescale=sampling.guidance_rescale or None,
        guidance_interval=sampling.guidance_interval,
    )
    return jnp.clip((model.decode_latents(params, latents) + 1) / 2, 0, 1)
