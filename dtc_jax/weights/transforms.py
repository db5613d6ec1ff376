"""Exact conversions between the arrays of a Flax entry and PyTorch's: axes are moved, arrays split and joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Transform:
    """A bijection between a tuple of Flax arrays and a tuple of PyTorch tensors; it changes no number.

    Attributes:
        to_flax: From PyTorch's tensors, in the entry's order, to Flax's arrays.
        to_torch: Its inverse.
    """

    to_flax: Callable[[Arrays], Arrays]
    to_torch: Callable[[Arrays], Arrays]

    def torch_shapes(self, flax_shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Shapes of PyTorch's tensors from those of Flax's arrays."""
        # One zero of one byte, strided to its shape: no memory.
        arrays = [np.broadcast_to(np.int8(0), shape) for shape in flax_shapes]
        return [array.shape for array in self.to_torch(arrays)]


def one_to_one(to_flax: Callable[[np.ndarray], np.ndarray], to_torch: Callable[[np.ndarray], np.ndarray]) -> Transform:
    """A transform of one array to one tensor."""
    return Transform(lambda arrays: [to_flax(arrays[0])], lambda arrays: [to_torch(arrays[0])])


IDENTITY = one_to_one(lambda x: x, lambda x: x)
"""Biases, norms, embedding tables."""

CONV = one_to_one(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""Convolution kernels: PyTorch [out, in, height, width], Flax [height, width, in, out]."""

LINEAR = one_to_one(lambda x: x.T, lambda x: x.T)
"""Dense kernels: PyTorch [out, in], Flax [in, out]."""

LINEAR_AS_CONV = one_to_one(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
"""A dense layer that PyTorch has as a 1x1 convolution [out, in, 1, 1]."""

CONV_AS_LINEAR = one_to_one(lambda x: x.T[None, None], lambda x: x[0, 0].T)
"""A 1x1 convolution [1, 1, in, out] that PyTorch has as a dense layer [out, in]."""


def reshaped(flax_shape: tuple[int, ...], torch_shape: tuple[int, ...]) -> Transform:
    """The same numbers in the same order in another shape (axes of length 1 added or removed, say)."""
    return one_to_one(lambda x: x.reshape(flax_shape), lambda x: x.reshape(torch_shape))


def joined(base: Transform, count: int) -> Transform:
    """Several Flax arrays that PyTorch has as one, joined along its first axis (q, k, v).

    Args:
        base: The transform of one part.
        count: Number of parts, of equal size.
    """

    def to_flax(arrays: Arrays) -> Arrays:
        return [base.to_flax([part])[0] for part in np.split(arrays[0], count)]

    def to_torch(arrays: Arrays) -> Arrays:
        return [np.concatenate([base.to_torch([array])[0] for array in arrays])]

    return Transform(to_flax, to_torch)


def conv_with_inputs(order: Sequence[int]) -> Transform:
    """A convolution whose input channels PyTorch has in another order.

    Args:
        order: Flax's input channel i is PyTorch's input channel `order[i]`.
    """
    forward = np.asarray(order)
    backward = np.argsort(forward)
    return one_to_one(lambda x: CONV.to_flax([x[:, forward]])[0], lambda x: CONV.to_torch([x[:, :, backward, :]])[0])
