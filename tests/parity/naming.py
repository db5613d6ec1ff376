"""From a PyTorch state dict to the Flax tree of the same network, by names alone.

Flax paths follow the PyTorch module names with `_` before list indices, so both sides spell the same once the
separators are equal: `down_blocks.0.resnets.0.conv1.weight` and `down_blocks_0/resnets_0/conv1/kernel`. What remains
is the last word (`weight` is a `kernel`, `scale` or `embedding`) and the order of the axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

_WEIGHT_NAMES = ("kernel", "scale", "embedding")


def torch_spelling(path: str) -> str:
    """A Flax path in the spelling that `flat_name` gives a PyTorch name."""
    *modules, leaf = path.split("/")
    return "_".join([*modules, "weight" if leaf in _WEIGHT_NAMES else leaf])


def flat_name(name: str) -> str:
    """A PyTorch name with its dots replaced."""
    return name.replace(".", "_")


def to_flax_layout(array: np.ndarray, leaf: str) -> np.ndarray:
    """Convolution kernels OIHW -> HWIO, dense kernels OI -> IO; everything else stays."""
    if leaf != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def torch_to_flax(
    state_dict: Mapping[str, Any], flax_shapes: Mapping[str, Any], renames: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Rename, transpose and check.

    Args:
        state_dict: PyTorch names to tensors (or arrays).
        flax_shapes: Nested dict with the Flax names; leaves have a `shape` (arrays or `jax.ShapeDtypeStruct`).
        renames: Parts of PyTorch names to replace first, in order, where the two sides are not called the same.

    Returns:
        Nested dict of float32 arrays with exactly the leaves of `flax_shapes`.

    Raises:
        ValueError: naming every tensor that is missing, unexpected or misshapen.
    """
    source: dict[str, tuple[str, Any]] = {}
    for name, tensor in state_dict.items():
        renamed = name
        for old, new in (renames or {}).items():
            renamed = renamed.replace(old, new)
        flat = flat_name(renamed)
        if flat in source:
            raise ValueError(f"{name} and {source[flat][0]} spell the same: {flat}")
        source[flat] = (name, tensor)
    problems: list[str] = []
    result: dict[str, np.ndarray] = {}
    for path, target in flatten_dict(dict(flax_shapes), sep="/").items():
        name, tensor = source.pop(torch_spelling(path), (None, None))
        if tensor is None:
            problems.append(f"missing: {path} {tuple(target.shape)}")
            continue
        array = to_flax_layout(np.asarray(tensor, dtype=np.float32), path.rsplit("/", 1)[-1])
        if array.shape != tuple(target.shape):
            problems.append(f"misshapen: {name} gives {array.shape}, {path} is {tuple(target.shape)}")
        result[path] = array
    problems += [f"unexpected: {name} {tuple(tensor.shape)}" for name, tensor in source.values()]
    if problems:
        raise ValueError("\n".join(problems))
    return unflatten_dict(result, sep="/")


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
