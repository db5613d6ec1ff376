"""What a network computes again in its backward pass instead of keeping it (Chen et al., 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree

from dtc_jax.models.convolution import CHECKPOINT_NAME

Remat = Literal["none", "block", "products"]
"""`none` keeps everything; `block` keeps each block's inputs alone; `products` keeps them and the results of
convolutions and dense layers inside, so that only norms, activations and attention are computed twice (not on CPUs,
whose compiler merges what is computed twice)."""


def apply_block(block: nn.Module, remat: Remat, x: Float[Array, "b ..."], *inputs: Array) -> PyTree:
    """`block(x, *inputs)`, keeping no more for the backward pass than `remat` says.

    Args:
        block: A bound module whose only variables are parameters.
        remat: See `Remat`.
        x: The batch comes first, as in the result.
        inputs: The rest.
    """
    if remat == "none" or block.is_initializing():
        return block(x, *inputs)
    if remat == "products":
        return nn.remat(lambda module, *inputs: module(*inputs), policy=_keep_products)(block, x, *inputs)
    alone = block.clone(parent=None)
    return recomputed(lambda params, *inputs: alone.apply({"params": params}, *inputs))(
        block.variables["params"], x, *inputs
    )


def recomputed(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A pure function `(params, x, *inputs)` whose backward pass runs it again from its inputs.

    As `jax.checkpoint`, but for what keeps the second run apart from the first: `jax.checkpoint` puts barriers round
    it, which the CPU's compiler removes before it merges equal computations. Here the second run's `x` has a zero added
    that is made of the gradient: it can neither be merged with the first nor begin before the gradient is there.
    """

    @jax.custom_vjp
    def run(params: PyTree, *inputs: Array) -> PyTree:
        return function(params, *inputs)

    def forward(params: PyTree, *inputs: Array) -> tuple[PyTree, tuple[PyTree, tuple[Array, ...]]]:
        return function(params, *inputs), (params, inputs)

    def backward(residuals: tuple[PyTree, tuple[Array, ...]], gradient: PyTree) -> tuple[PyTree, ...]:
        params, (x, *inputs) = residuals
        first = jax.tree.leaves(gradient)[0]
        # Each sample's zero is its own: those of a batch that is split over devices stay where they are.
        zero = 0 * first.reshape(first.shape[0], -1)[:, 0]
        x = x + zero.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
        return jax.vjp(function, params, x, *inputs)[1](gradient)

    run.defvjp(forward, backward)
    return run


def _keep_products(primitive: Any, *inputs: Any, **params: Any) -> Any:
    # Products with batch axes are attention's: a table of scores is what must not be kept.
    return (
        primitive is jax.lax.conv_general_dilated_p
        or jax.checkpoint_policies.save_only_these_names(CHECKPOINT_NAME)(primitive, *inputs, **params)
        or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **params)
    )
