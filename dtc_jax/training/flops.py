"""Floating-point operations of training, counted from the jaxpr: what the model asks for, whatever the compiler does.

Matrix products and convolutions are counted, two operations for each multiplication with its addition, including those
with a convolution's padding; elementwise work is not. That is how model FLOPs are counted everywhere (PaLM, Chowdhery
et al., 2022, appendix B), so that a utilisation from them compares with others'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from dtc_jax.config import ExperimentConfig
from dtc_jax.training.abstract import abstract_batch, abstract_params
from dtc_jax.training.objective import make_objective
from dtc_jax.training.params import FlatParams
from dtc_jax.weights.model_folder import unflatten_params


def train_flops_per_image(config: ExperimentConfig) -> float:
    """Operations of one training sample, forward and backward, without what rematerialisation computes again.

    Frozen networks count with the passes that they make: the reference encoder and the autoencoder's encoder forward,
    the decoder and the perceptual network also backward to their inputs.
    """
    # As many as in a step, because the perceptual loss takes a share of the batch.
    batch_size = config.training.batch_size
    objective = make_objective(without_remat(config))
    trainable, frozen = abstract_params(config)

    def loss_of(trainable: FlatParams, frozen: FlatParams, batch: Any, key: Any, step: Any) -> Any:
        return objective(unflatten_params({**frozen, **trainable}), batch, key, step)

    flops = count_flops(
        jax.grad(loss_of, has_aux=True),
        trainable,
        frozen,
        abstract_batch(config, batch_size),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return flops / batch_size


def without_remat(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with every activation kept."""
    names = [field.name for field in dataclasses.fields(config.training)]
    off: dict[str, Any] = {"remat": "none"} if "remat" in names else {}
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **off))


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of matrix products and convolutions in one call of `function`.

    Args:
        function: Anything that JAX can trace.
        args: Its arguments, arrays or `jax.ShapeDtypeStruct`; nothing is computed.

    Raises:
        ValueError: a loop whose number of turns is not known holds some of them.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: jex_core.Jaxpr) -> float:
    """Operations of matrix products and convolutions in a jaxpr; of a `cond`, the most expensive branch."""
    return float(sum(_equation_flops(equation) for equation in jaxpr.eqns))


def _equation_flops(equation: jex_core.JaxprEqn) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(equation.params)]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("a loop with an unknown number of turns holds matrix products: they cannot be counted")
    if name == "shard_map":
        # Its jaxpr is what one device does.
        return equation.params["mesh"].size * sum(inner)
    return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[jex_core.Jaxpr]:
    """The jaxprs among an equation's parameters: bodies of loops, branches, calls."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jex_core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jex_core.Jaxpr):
                yield item


def _dot_flops(equation: jex_core.JaxprEqn) -> float:
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(equation: jex_core.JaxprEqn) -> float:
    left, right = (_shape(variable) for variable in equation.invars)
    out = _shape(equation.outvars[0])
    params = equation.params
    numbers = params["dimension_numbers"]
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    per_output = right[numbers.rhs_spec[1]]  # input channels of a group
    pairs = 1.0
    for axis, dilation in enumerate(params["lhs_dilation"]):
        # A transposed convolution: each input element meets each of the kernel's; the zeros between do not count.
        positions = left[numbers.lhs_spec[2 + axis]] if dilation > 1 else out[numbers.out_spec[2 + axis]]
        pairs *= positions * right[numbers.rhs_spec[2 + axis]]
    return 2.0 * batch * features * per_output * pairs


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
