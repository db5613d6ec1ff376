"""The parts that only Diffuse to Choose has: hint adapter, hint encoder, fusion, token projection, null tokens.

No other code has them, so their PyTorch names are ours by rule, as our export's modules have them: `convs.0.weight` of
the adapter, `skips.0.gamma.weight` and `middle.beta.bias` of the fusion, `weight` and `bias` of the projection,
`embedding` of the null tokens; the hint encoder has the U-Net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dtc_jax.weights import unet
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries
from dtc_jax.weights.tensor_source import LazyTensor
from dtc_jax.weights.transforms import IDENTITY

HINT_ADAPTER = Layout("Diffuse to Choose's HintAdapter", rule_entries)
HINT_ENCODER = Layout("Diffuse to Choose's HintEncoder", unet.DIFFUSERS.entries)
FUSION = Layout("Diffuse to Choose's Fusion", rule_entries)
REFERENCE_PROJECTION = Layout("Diffuse to Choose's token projection", rule_entries)


def _null_entries(shapes: Shapes) -> list[Entry]:
    return [Entry((path,), (path,), IDENTITY) for path in shapes]


NULL_TOKENS = Layout("Diffuse to Choose's null tokens", _null_entries)

OWN_PARTS = {
    "hint_adapter": HINT_ADAPTER,
    "hint_encoder": HINT_ENCODER,
    "fusion": FUSION,
    "reference_projection": REFERENCE_PROJECTION,
    "null_tokens": NULL_TOKENS,
}
"""Networks of a model folder and their layouts."""


def with_more_inputs(tensors: Sequence[LazyTensor], in_channels: int) -> list[LazyTensor]:
    """A U-Net's tensors whose first convolution reads more channels, from which nothing comes at first.

    Zeros are appended to the kernel, so that a 4-channel Stable Diffusion starts a 9-channel model unchanged.

    Args:
        tensors: As `import_tensors` returns them.
        in_channels: Channels wanted; as many as there are leaves everything as it is.

    Raises:
        ValueError: there are more already.
    """

    def extended(tensor: LazyTensor) -> LazyTensor:
        height, width, inputs, outputs = tensor.shape
        if in_channels < inputs:
            raise ValueError(f"{tensor.name} reads {inputs} channels already, more than {in_channels}")

        def read() -> np.ndarray:
            padding = np.zeros((height, width, in_channels - inputs, outputs), tensor.dtype)
            return np.concatenate([tensor.read(), padding], axis=2)

        return replace(tensor, shape=(height, width, in_channels, outputs), read=read)

    return [extended(tensor) if tensor.name == "conv_in/kernel" else tensor for tensor in tensors]
