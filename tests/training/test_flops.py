"""Operations counted from the jaxpr, against counts by hand, a published one, and XLA's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dtc_jax.config import ExperimentConfig, LossConfig, UNetConfig
from dtc_jax.models.attention import attention, plain_attention
from dtc_jax.models.unet import UNet2DConditionModel
from dtc_jax.training.command import read_config
from dtc_jax.training.flops import count_flops, gradient_flops, train_flops_per_image

CONFIG: ExperimentConfig = read_config(Path(__file__).resolve().parents[2] / "configs" / "test.py")[0]


def spec(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def test_matrix_products() -> None:
    assert count_flops(jnp.matmul, spec(3, 5), spec(5, 7)) == 2 * 3 * 5 * 7
    assert count_flops(jnp.matmul, spec(11, 3, 5), spec(11, 5, 7)) == 2 * 11 * 3 * 5 * 7
    # Each of the two factors' gradients is a product of the same size.
    gradient = jax.grad(lambda a, b: jnp.sum(jnp.square(a @ b)), argnums=(0, 1))
    assert count_flops(gradient, spec(3, 5), spec(5, 7)) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_convolutions_and_their_gradients(stride: int, groups: int) -> None:
    x, kernel = spec(2, 8, 8, 12), spec(3, 3, 12 // groups, 16)
    forward = 2 * (2 * (8 // stride) ** 2 * 16) * (9 * 12 // groups)

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, stride, groups)

    assert count_flops(run, x, kernel) == forward
    # Three passes: the gradient by the input is a transposed convolution, whose zeros between rows do not count.
    gradient = jax.grad(lambda x, kernel: jnp.sum(jnp.square(run(x, kernel))), argnums=(0, 1))
    assert count_flops(gradient, x, kernel) == 3 * forward


def test_transposed_convolution() -> None:
    def upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME")

    # Every input pixel meets the whole kernel.
    assert count_flops(upsample, spec(1, 4, 4, 3), spec(3, 3, 3, 5)) == 2 * 4 * 4 * 9 * 3 * 5


def test_loops_and_calls() -> None:
    product = 2 * 4**3

    def repeated(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (jax.jit(jnp.matmul)(carry, carry), None), x, length=5)[0]

    assert count_flops(repeated, spec(4, 4)) == 5 * product
    assert count_flops(lambda x: jax.lax.map(lambda row: x @ row, x), spec(4, 4)) == product

    def branches(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert count_flops(branches, spec(4, 4)) == 2 * product
    checkpointed = jax.checkpoint(lambda x: jnp.sin(x @ x), policy=jax.checkpoint_policies.nothing_saveable)
    assert count_flops(checkpointed, spec(4, 4)) == product


def network(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A convolution, a loop over a dense layer, a branch, and a second convolution that nothing trains."""
    y = jnp.tanh(convolve(x, params["convolution"], 2)).mean(axis=(1, 2))
    y = jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ params["dense"]), None), y, length=3)[0]
    y = jax.lax.cond(y[0, 0] > 0, lambda: y @ params["dense"], lambda: y)
    fixed = convolve(x, jax.lax.stop_gradient(params["fixed"])).sum(axis=(1, 2))
    return jnp.sum(y) + jnp.sum(fixed)


def test_backward_pass_is_that_of_jax() -> None:
    params = {"convolution": spec(3, 3, 4, 8), "dense": spec(8, 8), "fixed": spec(3, 3, 4, 2)}
    inputs = spec(2, 8, 8, 4)
    counted = gradient_flops(network, params, inputs)
    assert counted == count_flops(jax.value_and_grad(network), params, inputs)
    dense, convolution, fixed = 2 * 2 * 8 * 8, 2 * (2 * 16) * 8 * (9 * 4), 2 * (2 * 64) * 2 * (9 * 4)
    # Forward and two gradients of each dense layer; no gradient by the input; the last convolution forward alone.
    assert counted == 4 * 3 * dense + 2 * convolution + fixed


def test_what_is_computed_again_does_not_count() -> None:
    params, inputs = {"dense": spec(8, 8)}, spec(2, 8)

    def twice(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params["dense"]) @ params["dense"]))

    remat = jax.checkpoint(twice)
    assert gradient_flops(remat, params, inputs) == gradient_flops(twice, params, inputs)
    # The whole of it is computed again, which the jaxpr of the gradient does show.
    assert count_flops(jax.grad(remat), params, inputs) > gradient_flops(remat, params, inputs)


def test_attention_with_a_gradient_of_its_own() -> None:
    shapes = (spec(1, 2048, 2, 4),) * 3  # long enough not to keep its scores

    def loss(attend: Callable) -> Callable:
        return lambda inputs: jnp.sum(jnp.square(attend(*inputs)))

    tables = 2 * (2 * 2048**2 * 2 * 4)  # scores, and their product with the values
    assert count_flops(loss(attention), shapes) == tables
    for attend in (attention, plain_attention):
        assert gradient_flops(loss(attend), shapes) == 3 * tables


def test_loop_of_unknown_length() -> None:
    def loop(x: jax.Array, times: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, times, lambda _, x: x @ x, x)

    with pytest.raises(ValueError, match="unknown number of turns"):
        count_flops(loop, spec(4, 4), jax.ShapeDtypeStruct((), jnp.int32))
    assert count_flops(lambda n: jax.lax.fori_loop(0, n, lambda _, x: x + 1, 0), jax.ShapeDtypeStruct((), int)) == 0


def test_stable_diffusion_unet() -> None:
    unet: Any = UNet2DConditionModel(UNetConfig(in_channels=4))
    inputs = (spec(1, 64, 64, 4), spec(1), spec(1, 77, 768))
    params = jax.eval_shape(unet.init, jax.random.key(0), *inputs)
    # 0.80 TFLOP: what others count for Stable Diffusion 1.5 at 512 pixels.
    assert count_flops(unet.apply, params, *inputs) == pytest.approx(0.803e12, rel=1e-3)


def test_agrees_with_xla() -> None:
    def network(x: jax.Array, kernel: jax.Array, dense: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(y.reshape(y.shape[0], -1) @ dense)

    function: Callable = jax.value_and_grad(network, argnums=(1, 2))
    arguments = (spec(2, 10, 10, 16), spec(3, 3, 16, 32), spec(8 * 8 * 32, 64))
    counted = count_flops(function, *arguments)
    analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
    # XLA counts additions and reductions as well.
    assert counted == pytest.approx(analysis["flops"], rel=0.02)
    assert counted <= analysis["flops"]


def test_of_training() -> None:
    flops = train_flops_per_image(CONFIG)
    assert flops > 0
    # A sample's share does not depend on how many there are.
    doubled = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, batch_size=16))
    assert train_flops_per_image(doubled) == pytest.approx(flops, rel=1e-3)
    # The perceptual loss decodes half of this configuration's batch; without it there is no decoding.
    whole, none = (
        train_flops_per_image(
            dataclasses.replace(CONFIG, loss=LossConfig(perceptual_weight=weight, perceptual_fraction=1.0))
        )
        for weight in (0.1, 0.0)
    )
    assert whole > flops > none
    assert flops - none == pytest.approx((whole - none) / 2, rel=1e-3)
