"""The U-Net with hint features fused into it, guidance, and the steps of DDIM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

Modulations = list[tuple[torch.Tensor, torch.Tensor]]


@contextlib.contextmanager
def modulated(unet, modulations: Modulations | None) -> Iterator[None]:
    """While this is open, the U-Net's skips and middle become (1 + gamma) * x + beta.

    The U-Net stays diffusers' own: hooks change what its middle block returns and which skips its up blocks are given.

    Args:
        unet: A UNet2DConditionModel.
        modulations: (gamma, beta) of every skip, in the order in which they are made, and of the middle; None for none.
    """
    if modulations is None:
        yield
        return
    *remaining, middle = modulations

    def after_middle(module, inputs, output):
        return _modulate(output, middle)

    def before_up_block(module, inputs, named_inputs):
        skips = named_inputs["res_hidden_states_tuple"]
        parts = remaining[-len(skips) :]
        del remaining[-len(skips) :]
        changed = tuple(_modulate(x, part) for x, part in zip(skips, parts, strict=True))
        return inputs, {**named_inputs, "res_hidden_states_tuple": changed}

    handles = [unet.mid_block.register_forward_hook(after_middle)]
    handles += [block.register_forward_pre_hook(before_up_block, with_kwargs=True) for block in unet.up_blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modulate(x: torch.Tensor, part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    gamma, beta = part
    return ((1 + gamma.float()) * x.float() + beta.float()).to(x.dtype)


def is_guided(scheduler, timestep, interval: tuple[float, float] | list[float] | None) -> bool:
    """Whether the timestep's noise level lies in the interval that guidance is limited to; None is everywhere.

    Kynkaanniemi et al., 2024 (arXiv:2404.07724): low < sigma <= high, sigma = sqrt((1 - abar) / abar).
    """
    if interval is None:
        return True
    alpha = torch.cumprod(1 - scheduler.betas.double().cpu(), 0)[int(timestep)].item()
    return interval[0] < ((1 - alpha) / alpha) ** 0.5 <= interval[1]


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    """Classifier-free guidance; with `rescale` the conditional output's spread is given back to that share.

    Lin et al., 2023 (arXiv:2305.08891), equations 15 and 16; the standard deviation is numpy's, over a whole sample.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread = [x.std(axes, correction=0, keepdim=True) for x in (conditional, guided)]
    return guided * (rescale * spread[0] / spread[1] + 1 - rescale)


class DDIMSteps:
    """DDIM (Song et al., 2021) along the scheduler's timesteps, each step leading to the next timestep of the list.

    diffusers' `DDIMScheduler.step` goes to t - T / N instead, which is the same for "leading" timesteps and, for
    others, not always one that is visited.
    """

    def __init__(self, scheduler, num_inference_steps: int, device: torch.device, eta: float):
        scheduler.set_timesteps(num_inference_steps, device=device)
        self.timesteps = scheduler.timesteps
        self.following = [*self.timesteps.tolist()[1:], -1]
        self.kind = scheduler.config.prediction_type
        self.eta = eta
        self.last_is_clean = scheduler.config.set_alpha_to_one
        self.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double().cpu(), 0)

    def step(self, index: int, output: torch.Tensor, latents: torch.Tensor, generator=None) -> torch.Tensor:
        """Latents, float32, after the step with this index."""
        alpha_t = self.alphas_cumprod[int(self.timesteps[index])].item()
        following = self.following[index]
        alpha_s = 1.0 if following < 0 and self.last_is_clean else self.alphas_cumprod[max(following, 0)].item()
        signal, noise = alpha_t**0.5, (1 - alpha_t) ** 0.5
        if self.kind == "epsilon":
            x0, eps = (latents - noise * output) / signal, output
        elif self.kind == "v_prediction":
            x0, eps = signal * latents - noise * output, signal * output + noise * latents
        else:
            x0, eps = output, (latents - signal * output) / noise
        variance = max(self.eta**2 * (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s), 0.0)
        result = alpha_s**0.5 * x0 + max(1 - alpha_s - variance, 0.0) ** 0.5 * eps
        if self.eta > 0:
            from diffusers.utils.torch_utils import randn_tensor

            result = result + variance**0.5 * randn_tensor(
                latents.shape, generator=generator, device=latents.device, dtype=latents.dtype
            )
        return result
