"""Random values for PyTorch's modules, and how far results are apart."""

from __future__ import annotations

from typing import Any

import numpy as np


def fill_randomly(module: Any, seed: int = 0) -> None:
    """Give every tensor of a PyTorch module random values of a sane size, in place: nothing stays zero or one.

    Kernels get the variance of their fan-in, norm scales 1 + 0.1 n, biases 0.1 n, other tensors 0.5 n; of the buffers,
    a batch norm's means get 0.1 n and its variances 0.5 to 1.5.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("bias"):
                value = 0.1 * noise
            elif name.endswith("weight") and tensor.ndim == 1:
                value = 1 + 0.1 * noise
            elif name.endswith("weight"):
                value = noise / tensor[0].numel() ** 0.5
            else:
                value = 0.5 * noise
            tensor.copy_(value)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def relative_l2(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected|, in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {actual.shape} and {expected.shape}")
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
