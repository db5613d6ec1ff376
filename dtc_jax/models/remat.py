"""What a network computes again in its backward pass instead of keeping it (Chen et al., 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax

Remat = Literal["none", "block", "products"]
"""`none` keeps everything; `block` keeps each block's inputs alone; `products` keeps them and the results of
convolutions and dense layers inside, so that only norms, activations and attention are computed twice."""

Target = TypeVar("Target", bound=Callable[..., Any])


def rematerialized(target: Target, remat: Remat) -> Target:
    """A module's class, or a function of a module and arrays, that keeps no more than `remat` says.

    Names of parameters and results stay what they are.
    """
    if remat == "none":
        return target
    return nn.remat(target, policy=_keep_products if remat == "products" else None)


def _keep_products(primitive: Any, *inputs: Any, **params: Any) -> Any:
    # Products with batch axes are attention's: a table of scores is what must not be kept.
    return primitive is jax.lax.conv_general_dilated_p or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *inputs, **params
    )
