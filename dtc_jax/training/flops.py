"""Floating-point operations of training, counted from the jaxpr: what the model asks for, whatever the compiler does.

Matrix products and convolutions are counted, two operations for each multiplication with its addition, including those
with a convolution's padding; elementwise work is not. That is how model FLOPs are counted everywhere (PaLM, Chowdhery
et al., 2022, appendix B), so that a utilisation from them compares with others'.

The backward pass is not traced but derived: a product has one product of its own size for the gradient of each factor
that depends on a trained parameter. What rematerialisation computes again is therefore never counted, wherever it
hides. (A product that depends on a trained parameter and reaches the loss only through `stop_gradient` would be counted
with gradients that it has not; the objectives have none.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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
    objective = make_objective(config)
    trainable, frozen = abstract_params(config)

    def loss_of(trainable: FlatParams, frozen: FlatParams, batch: Any, key: Any, step: Any) -> Any:
        return objective(unflatten_params({**frozen, **trainable}), batch, key, step)[0]

    key, step = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    return gradient_flops(loss_of, trainable, frozen, abstract_batch(config, batch_size), key, step) / batch_size


def gradient_flops(function: Callable[..., Any], trained: Any, *others: Any) -> float:
    """Operations of one call of `function` and of its gradient by `trained`.

    Args:
        function: Anything that JAX can trace.
        trained: Its first argument: a tree of arrays or `jax.ShapeDtypeStruct`.
        others: The rest of its arguments, of which there are no gradients.

    Raises:
        ValueError: a loop whose number of turns is not known holds matrix products.
    """
    jaxpr = jax.make_jaxpr(function)(trained, *others).jaxpr
    count = len(jax.tree.leaves(trained))
    work = _walk(jaxpr, [index < count for index in range(len(jaxpr.invars))])
    return work.forward + work.backward


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of matrix products and convolutions in one call of `function`; of a `cond`, the costliest branch.

    Args:
        function: Anything that JAX can trace.
        args: Its arguments, arrays or `jax.ShapeDtypeStruct`; nothing is computed.

    Raises:
        ValueError: a loop whose number of turns is not known holds some of them.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _walk(jaxpr, [False] * len(jaxpr.invars)).forward


class _Work(NamedTuple):
    """Operations of a jaxpr, and which of its results depend on a trained parameter."""

    forward: float
    backward: float
    active: list[bool]

    def times(self, turns: float) -> _Work:
        return _Work(turns * self.forward, turns * self.backward, self.active)


def _walk(jaxpr: jex_core.Jaxpr, active: Sequence[bool]) -> _Work:
    """Work of a jaxpr of whose inputs the `active` ones depend on a trained parameter."""
    known: dict[Any, bool] = dict(zip(jaxpr.invars, active, strict=True))
    forward = backward = 0.0

    def is_active(variable: Any) -> bool:
        return not isinstance(variable, jex_core.Literal) and known.get(variable, False)

    equation: Any
    for equation in jaxpr.eqns:
        work = _equation(equation, [is_active(variable) for variable in equation.invars])
        forward, backward = forward + work.forward, backward + work.backward
        for variable, flag in zip(equation.outvars, work.active, strict=True):
            # Integers and truth values have no gradient.
            known[variable] = flag and jnp.issubdtype(variable.aval.dtype, jnp.inexact)
    return _Work(forward, backward, [is_active(variable) for variable in jaxpr.outvars])


def _equation(equation: jex_core.JaxprEqn, active: list[bool]) -> _Work:
    name, params, results = equation.primitive.name, equation.params, len(equation.outvars)
    if name in ("dot_general", "conv_general_dilated"):
        flops = _dot_flops(equation) if name == "dot_general" else _convolution_flops(equation)
        return _Work(flops, flops * sum(active), [any(active)] * results)
    if name == "stop_gradient":
        return _Work(0.0, 0.0, [False] * results)
    if name == "scan":
        return _scan(params, active)
    if name == "cond":
        branches = [_walk(branch.jaxpr, active[1:]) for branch in params["branches"]]
        costliest = max(branches, key=lambda work: work.forward + work.backward)
        joined = [any(flags) for flags in zip(*(work.active for work in branches), strict=True)]
        return costliest._replace(active=joined)
    inner = list(_inner_jaxprs(params))
    if name == "while":
        if any(_walk(jaxpr, [False] * len(jaxpr.invars)).forward for jaxpr in inner):
            raise ValueError("a loop with an unknown number of turns holds matrix products: they cannot be counted")
        return _Work(0.0, 0.0, [any(active)] * results)
    if not inner:
        return _Work(0.0, 0.0, [any(active)] * results)
    # A call: jit, checkpoint, custom_jvp, custom_vjp and the like, with the arguments of the jaxpr inside.
    jaxpr = inner[0]
    flags = active if len(jaxpr.invars) == len(active) else [any(active)] * len(jaxpr.invars)
    work = _walk(jaxpr, flags)
    if name == "shard_map":
        # Its jaxpr is what one device does.
        work = work.times(params["mesh"].size)
    return work if len(work.active) == results else work._replace(active=[any(active)] * results)


def _scan(params: dict[str, Any], active: list[bool]) -> _Work:
    body = params["jaxpr"].jaxpr
    consts, carries = params["num_consts"], params["num_carry"]
    while True:
        work = _walk(body, active)
        carried = active[consts : consts + carries]
        grown = [before or after for before, after in zip(carried, work.active, strict=False)]
        if grown == carried:
            return work.times(params["length"])
        active = [*active[:consts], *grown, *active[consts + carries :]]


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[jex_core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
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
