"""The train step in PyTorch, for comparison: the same networks and loss, from diffusers and transformers' modules.

Run by `python -m dtc_jax.bench train` as a process of its own, which has the device's memory to itself. Nothing in the
package imports this module, which imports PyTorch. Reads a request as JSON from the standard input and prints results
as one line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from dtc_jax.config import AutoencoderKLConfig, ExperimentConfig, VGGConfig, config_from_json
from dtc_jax.weights.export_pytorch.networks import ExportedNetwork, exported_networks, scheduler_config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PERCEPTUAL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
FROZEN = ("vae", "reference_encoder", "vgg")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Batch = dict[str, torch.Tensor]
"""float32 NCHW: `scene` in [-1, 1], `mask` {0, 1}, `hint` in [0, 1], `reference` normalised; what is drawn for a step:
`noise` and `posterior_noise` like the latents, `timestep` [b], `keep_tokens` and `keep_hint` {0, 1} [b]."""


class VGGFeatures(nn.Module):
    """torchvision's VGG up to the perceptual loss's last feature: post-ReLU, of each block's second convolution."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        blocks, channels = [], 3
        last = len(config.block_channels) - 1
        for number, (width, count) in enumerate(zip(config.block_channels, config.convolutions_per_block, strict=True)):
            layers = []
            for _ in range(min(2, count) if number == last else count):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            blocks.append(nn.ModuleList(layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features of images in [-1, 1]."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        x, features = ((images + 1) / 2 - mean) / std, []
        for number, block in enumerate(self.blocks):
            if number:
                x = F.max_pool2d(x, 2)
            for position, layer in enumerate(block):
                x = F.relu(layer(x))
                if position == min(1, len(block) - 1):
                    features.append(x)
        return features


class TrainedModel(nn.Module):
    """Every network of the experiment, and its loss."""

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.config = config
        self.networks = nn.ModuleDict({net.network: build(net) for net in exported_networks(config.model)})
        if config.loss.perceptual_weight > 0:
            self.networks["vgg"] = VGGFeatures(config.model.vgg)
        alphas = torch.cumprod(1 - diffusers.DDIMScheduler(**scheduler(config)).betas.double(), 0)
        self.register_buffer("signal", alphas.sqrt().float())
        self.register_buffer("noise", (1 - alphas).sqrt().float())

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss, without conditions' weights by min-SNR and with the whole picture decoded."""
        config, net = self.config, self.networks
        options, vae = config.loss, config.model.vae
        scene, mask, timestep = batch["scene"], batch["mask"], batch["timestep"]
        with torch.no_grad():
            posterior = net["vae"].encode(self.frozen(scene)).latent_dist
            latents = (posterior.mean + posterior.std * batch["posterior_noise"]).float() * vae.scaling_factor
            masked = net["vae"].encode(self.frozen(scene * (1 - mask))).latent_dist.mode().float() * vae.scaling_factor
            features = net["reference_encoder"](self.frozen(batch["reference"])).last_hidden_state
        signal, sigma = (table[timestep][:, None, None, None] for table in (self.signal, self.noise))
        noisy = signal * latents + sigma * batch["noise"]
        mask_latent = mask[:, :, :: vae.factor, :: vae.factor]

        tokens = net["reference_projection"](features)
        keep = batch["keep_tokens"][:, None, None].to(tokens.dtype)
        tokens = keep * tokens + (1 - keep) * net["null_tokens"](tokens)
        modulations = None
        if config.model.hint.kind != "none":
            inputs = net["hint_adapter"](batch["hint"]) + masked
            modulations = net["fusion"](net["hint_encoder"](inputs, timestep, tokens))
        output = self.predict(torch.cat([noisy, mask_latent, masked], 1), timestep, tokens, modulations, batch).float()

        kind = config.diffusion.prediction_type
        targets = {
            "epsilon": batch["noise"],
            "v_prediction": signal * batch["noise"] - sigma * latents,
            "sample": latents,
        }
        weight = mask_latent + (1 - mask_latent) * options.outside_weight
        weight = weight / weight.mean((1, 2, 3), keepdim=True)
        loss = (weight * (output - targets[kind]).square()).mean()
        if options.perceptual_weight > 0:
            estimates = {
                "epsilon": (noisy - sigma * output) / signal,
                "v_prediction": signal * noisy - sigma * output,
                "sample": output,
            }
            count = max(1, round(options.perceptual_fraction * len(scene)))
            rows = slice(None) if count == len(scene) else timestep.argsort()[:count]
            decoded = net["vae"].decode(self.frozen(estimates[kind][rows] / vae.scaling_factor)).sample
            pairs = zip(net["vgg"](self.frozen(decoded)), net["vgg"](self.frozen(scene[rows])), strict=True)
            distances = [
                weight * (a.float() - b.float()).abs().mean()
                for weight, (a, b) in zip(PERCEPTUAL_WEIGHTS, pairs, strict=True)
            ]
            loss = loss + options.perceptual_weight * torch.stack(distances).sum()
        return loss

    def frozen(self, x: torch.Tensor) -> torch.Tensor:
        """In the type in which the frozen networks are kept."""
        return x.to(DTYPES[self.config.training.frozen_dtype])

    def predict(
        self, inputs: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, modulations: Any, batch: Batch
    ) -> torch.Tensor:
        """diffusers' UNet2DConditionModel, its skips and middle modulated where the hint is kept."""
        unet = self.networks["unet"]
        if modulations is None:
            return unet(inputs, timestep, encoder_hidden_states=tokens).sample
        keep = batch["keep_hint"][:, None, None, None]

        def modulate(x: torch.Tensor, part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            gamma, beta = part
            return ((1 + keep * gamma.float()) * x.float() + keep * beta.float()).to(x.dtype)

        temb = unet.time_embedding(unet.time_proj(timestep).to(inputs.dtype))
        x = unet.conv_in(inputs)
        skips = [x]
        for block in unet.down_blocks:
            more = {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
            x, outputs = block(hidden_states=x, temb=temb, **more)
            skips += outputs
        x = modulate(unet.mid_block(x, temb, encoder_hidden_states=tokens), modulations[-1])
        skips = [modulate(skip, part) for skip, part in zip(skips, modulations[:-1], strict=True)]
        for block in unet.up_blocks:
            more = {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}
            count = len(block.resnets)
            taken, skips = tuple(skips[-count:]), skips[:-count]
            x = block(hidden_states=x, temb=temb, res_hidden_states_tuple=taken, **more)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def scheduler(config: ExperimentConfig) -> dict[str, Any]:
    """diffusers' arguments of the noise schedule."""
    return {
        name: value for name, value in scheduler_config(config.diffusion, config.sampling).items() if name[0] != "_"
    }


def build(network: ExportedNetwork) -> nn.Module:
    """A network with its library's own first values."""
    config = {name: value for name, value in network.config.items() if name[0] != "_"}
    if network.library == "transformers":
        return transformers.Dinov2Model(transformers.Dinov2Config(**config))
    if network.library == "diffusers":
        return getattr(diffusers, network.class_name)(**config)
    module = importlib.import_module(f"dtc_jax.weights.export_pytorch.template.{network.library}")
    return getattr(module, network.class_name)(**config)


def make_batch(config: ExperimentConfig, size: int, device: torch.device) -> Batch:
    """Made-up samples, and what is drawn for a step."""
    model, options = config.model, config.loss
    torch.manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, device=device)

    side, reference = model.image_size, model.reference_encoder.image_size
    latent = (model.vae.latent_channels, side // model.vae.factor, side // model.vae.factor)
    mask = torch.zeros(size, 1, side, side, device=device)
    mask[:, :, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    dropped = torch.rand(size, device=device)
    return {
        "scene": normal(3, side, side).clamp(-1, 1),
        "mask": mask,
        "hint": normal(3, side, side).sigmoid(),
        "reference": normal(3, reference, reference),
        "noise": normal(*latent),
        "posterior_noise": normal(*latent),
        "timestep": torch.randint(config.diffusion.num_train_timesteps, (size,), device=device),
        "keep_tokens": (dropped >= options.drop_tokens).float(),
        "keep_hint": torch.ones(size, device=device),
    }


def make_step(config: ExperimentConfig, device: torch.device, compiled: bool) -> tuple[TrainedModel, Any]:
    """The model, and the function that takes a training step on a batch and returns the loss."""
    model = TrainedModel(config).to(device).train()
    for name in FROZEN:
        if name in model.networks:
            model.networks[name].eval().requires_grad_(False).to(DTYPES[config.training.frozen_dtype])
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    decayed = [value for name, value in trained.items() if name.endswith("weight") and value.ndim > 1]
    others = [value for name, value in trained.items() if not (name.endswith("weight") and value.ndim > 1)]
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(options.b1, options.b2),
        fused=device.type == "cuda",
    )
    parameters = list(trained.values())
    ema = [value.detach().clone() for value in parameters] if config.ema.enabled else []
    loss_of = torch.compile(model) if compiled else model

    def step(batch: Batch) -> torch.Tensor:
        with arithmetic(config, device):
            loss = loss_of(batch)
        loss.backward()
        if options.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema:
            with torch.no_grad():
                torch._foreach_lerp_(ema, parameters, 1 - config.ema.decay)
        return loss.detach()

    return model, step


@contextlib.contextmanager
def arithmetic(config: ExperimentConfig, device: torch.device) -> Iterator[None]:
    """Automatic mixed precision where the experiment computes in bfloat16."""
    with torch.autocast(device.type, torch.bfloat16, enabled=config.training.compute_dtype == "bfloat16"):
        yield


def measure(
    config: ExperimentConfig, batch_size: int, steps: int, device: torch.device, compiled: bool
) -> dict[str, Any]:
    """Time some steps after two that compile and warm up."""
    model, step = make_step(config, device, compiled)
    batch = make_batch(config, batch_size, device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        loss = step(batch)
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        loss = step(batch)
    wait()
    seconds = (time.perf_counter() - started) / steps
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return {
        "seconds": seconds,
        "loss": loss.item(),
        "trained": trained,
        "frozen": sum(value.numel() for value in model.parameters()) - trained,
        "memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def main() -> int:
    """Answer one request; returns the exit code."""
    request = json.load(sys.stdin)
    if request["cuda_only"] and not torch.cuda.is_available():
        print(json.dumps({"skipped": "PyTorch has no CUDA device here"}))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config_from_json(request["config"])
    assert isinstance(config.model.vae, AutoencoderKLConfig)
    results = {}
    for name, weight in request["weights"].items():
        changed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, perceptual_weight=weight))
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        results[name] = measure(changed, request["batch_size"], request["steps"], device, request["compile"])
    versions = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"results": results, "versions": versions, "device": name}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
