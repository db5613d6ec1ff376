"""The sampler in PyTorch, for comparison: the same networks and weights, in a loop as users of diffusers write it.

Run by `python -m dtc_jax.bench sample` as a process of its own. Nothing in the package imports this module, which
imports PyTorch. Reads a request as JSON from the standard input and prints results as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from dtc_jax.bench.jax_sample import initial_noise
from dtc_jax.bench.pytorch_train import DTYPES, IMAGENET_MEAN, IMAGENET_STD, build, scheduler
from dtc_jax.bench.sampling_inputs import forget_peak_memory, made_up_cases, made_up_params, peak_memory
from dtc_jax.config import ExperimentConfig, ModelConfig, config_from_json
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.dinov2 import at_image_size
from dtc_jax.weights.export_pytorch.networks import ExportedNetwork, exported_networks
from dtc_jax.weights.export_pytorch.template.dtc_sampler import DDIMSteps, Modulations, modulated
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.model_folder import flatten_params


def load_network(network: ExportedNetwork, config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """A network with made-up parameters; every tensor must be there."""
    params = flatten_params(made_up_params(DiffuseToChoose(config).shapes()[network.network], network.network))
    if network.network == "reference_encoder":
        params, _ = at_image_size(params, config.reference_encoder)
    exported = export_tensors(network.layout, params)
    state = {tensor.name: torch.from_numpy(np.array(tensor.read())).to(dtype) for tensor in exported}
    if network.library == "transformers":  # whose modules have other names inside than in files
        with tempfile.TemporaryDirectory(prefix="dtc-bench-") as folder:
            save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            del state
            (Path(folder) / "config.json").write_text(json.dumps(network.config_json()))
            return transformers.Dinov2Model.from_pretrained(folder, dtype=dtype).eval()
    with torch.device("meta"):
        module = build(network)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


class Sampler:
    """Every network of the experiment, and the sampling loop.

    Args:
        config: The experiment.
        device: Where it runs.
        dtype: Type of parameters and arithmetic.
        compiled: Whether U-Net and hint encoder go through `torch.compile`.
    """

    def __init__(self, config: ExperimentConfig, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.networks = {
            net.network: load_network(net, config.model, dtype).to(device) for net in exported_networks(config.model)
        }
        if device.type == "cuda":
            self.networks = {name: net.to(memory_format=torch.channels_last) for name, net in self.networks.items()}
        if compiled:
            for name in {"hint_encoder", "fusion"} & set(self.networks):
                self.networks[name] = torch.compile(self.networks[name])  # type: ignore[assignment]
        self.unet = torch.compile(self._unet) if compiled else self._unet

    def _unet(
        self, x: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, modulations: Modulations | None
    ) -> torch.Tensor:
        with modulated(self.networks["unet"], modulations):
            return self.networks["unet"](x, timestep, encoder_hidden_states=tokens).sample

    def encode_scene(self, scene: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mask at the latents' size and the scaled masked latents, joined."""
        vae = self.config.model.vae
        hidden = ((scene / 127.5 - 1) * (1 - mask)).to(self.dtype)
        latents = self.networks["vae"].encode(hidden).latent_dist.mode() * vae.scaling_factor
        return torch.cat([mask[:, :, :: vae.factor, :: vae.factor].to(self.dtype), latents], 1)

    def encode_reference(self, reference: torch.Tensor) -> torch.Tensor:
        """Tokens for the cross-attention."""
        mean, std = (reference.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        features = self.networks["reference_encoder"](((reference / 255 - mean) / std).to(self.dtype))
        return self.networks["reference_projection"](features.last_hidden_state)

    def hint(self, inputs: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, rows: int) -> Modulations:
        """(gamma, beta) for every skip and the middle; rows without a hint get zeros."""
        hinted = len(inputs)
        features = self.networks["hint_encoder"](inputs, timestep.expand(hinted), tokens[:hinted])

        def padded(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x.new_zeros(rows - hinted, *x.shape[1:])]) if rows > hinted else x

        return [(padded(gamma), padded(beta)) for gamma, beta in self.networks["fusion"](features)]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1]."""
        decoded = self.networks["vae"].decode((latents / self.config.model.vae.scaling_factor).to(self.dtype)).sample
        return ((decoded.float() + 1) / 2).clamp(0, 1)

    def conditions(self, batch: dict[str, torch.Tensor], images: int) -> tuple[torch.Tensor, ...]:
        """Both branches' tokens, U-Net inputs and hint inputs, one row for each image and branch."""
        each = images // len(batch["mask"])
        masked = self.encode_scene(batch["scene"], batch["mask"]).repeat_interleave(each, 0)
        tokens = self.encode_reference(batch["reference"]).repeat_interleave(each, 0)
        tokens = torch.cat([tokens, self.networks["null_tokens"](tokens)])
        inputs = masked.new_zeros(0)
        if "hint_adapter" in self.networks:
            hint = self.networks["hint_adapter"]((batch["hint"] / 255).to(self.dtype)).repeat_interleave(each, 0)
            inputs = hint + masked[:, 1:]
            if self.config.sampling.unconditional == "tokens":
                inputs = torch.cat([inputs, inputs])
        return tokens, torch.cat([masked, masked]), inputs

    @torch.inference_mode()
    def __call__(
        self, batch: dict[str, torch.Tensor], noise: torch.Tensor, steps: int, hoisted: bool = False
    ) -> torch.Tensor:
        """DDIM with guidance in one batched pass.

        Args:
            batch: Pixels 0..255 and mask {0, 1}, float32 NCHW.
            noise: Of each image.
            steps: Number of steps.
            hoisted: Whether the hint encoder runs before the loop (for all steps one after the other, or once if its
                time is fixed), or at every step.
        """
        tokens, conditions, hint_inputs = self.conditions(batch, len(noise))
        options = {**scheduler(self.config), "steps_offset": self.config.sampling.steps_offset}
        ddim = DDIMSteps(diffusers.DDIMScheduler(**options), steps, self.device, 0.0)
        rows, latents = 2 * len(noise), noise
        before: list[Modulations] = []
        if hoisted:
            once = self.config.model.hint.time == "fixed"
            times = ddim.timesteps[:1] if once else ddim.timesteps
            before = [self.hint(hint_inputs, timestep, tokens, rows) for timestep in times]
            before = before * steps if once else before
        for index, timestep in enumerate(ddim.timesteps):
            modulations = None
            if len(hint_inputs):
                modulations = before[index] if hoisted else self.hint(hint_inputs, timestep, tokens, rows)
            x = torch.cat([torch.cat([latents, latents]).to(self.dtype), conditions], 1)
            conditional, unconditional = self.unet(x, timestep, tokens, modulations).float().chunk(2)
            output = unconditional + self.config.sampling.guidance_scale * (conditional - unconditional)
            latents = ddim.step(index, output, latents)
        return self.decode(latents)


def to_tensors(batch: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """NHWC numbers on the host to float32 NCHW."""
    return {name: torch.from_numpy(value).to(device).float().permute(0, 3, 1, 2) for name, value in batch.items()}


def measure(request: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Time the whole sampler, hint in the loop and before it, then the parts."""
    config = config_from_json(request["config"])
    images = request["batch_size"] * request["images_per_case"]
    batch = to_tensors(made_up_cases(config.model, request["batch_size"]), device)
    noise = torch.from_numpy(initial_noise(config, images).copy()).to(device).permute(0, 3, 1, 2)
    sampler = Sampler(config, device, DTYPES[request["dtype"]], request["compile"] and device.type == "cuda")

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def timed(function: Callable[[], Any]) -> tuple[list[float], list[float]]:
        walls, cpus = [], []
        with torch.inference_mode():
            for _ in range(request["repeats"]):
                wait()
                wall, cpu = time.perf_counter(), time.process_time()
                function()
                wait()
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
        return walls, cpus

    rows, result, first = {}, None, 0.0
    variants = (
        {"pytorch": False, "pytorch, hint before the loop": True}
        if config.model.hint.kind != "none"
        else {"pytorch": False}
    )
    for name, hoisted in variants.items():
        forget_peak_memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if result is None:
            started = time.perf_counter()
            result = sampler(batch, noise, request["steps"])
            wait()
            first = time.perf_counter() - started
        walls, cpus = timed(lambda hoisted=hoisted: sampler(batch, noise, request["steps"], hoisted))
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
        rows[name] = {
            "seconds": min(walls),
            "all_seconds": walls,
            "cpu_seconds": min(cpus),
            "memory": memory,
            "stages": {},
        }
    assert result is not None
    with torch.inference_mode():
        tokens, conditions, hint_inputs = sampler.conditions(batch, images)
    x, timestep = (
        torch.cat([torch.cat([noise, noise]).to(sampler.dtype), conditions], 1),
        torch.tensor(500, device=device),
    )
    parts: dict[str, Callable[[], Any]] = {
        "scene": lambda: sampler.encode_scene(batch["scene"], batch["mask"]),
        "reference": lambda: sampler.encode_reference(batch["reference"]),
        "hint": lambda: sampler.hint(hint_inputs, timestep, tokens, len(x)),
        "denoise": lambda: sampler.unet(x, timestep, tokens, None),
        "decode": lambda: sampler.decode(noise),
    }
    if not len(hint_inputs):
        del parts["hint"]
    if request["stages"]:
        rows["pytorch"]["stages"] = {name: min(timed(function)[0]) for name, function in parts.items()}
    pixels = result.permute(0, 2, 3, 1).cpu().numpy()
    return {
        "rows": rows,
        "first_seconds": first,
        "image": [float(value) for value in pixels.mean((1, 2, 3))],
        "checksum": [float(value) for value in pixels[:, ::8, ::8].reshape(-1)[:4096]],
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> int:
    """Answer one request; returns the exit code."""
    request = json.load(sys.stdin)
    if request["cuda_only"] and not torch.cuda.is_available():
        print(json.dumps({"skipped": "PyTorch has no CUDA device here"}))
        return 0
    # As many threads as JAX has.
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    print(json.dumps(measure(request, torch.device("cuda" if torch.cuda.is_available() else "cpu"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
