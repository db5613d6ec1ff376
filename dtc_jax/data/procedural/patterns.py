"""The patterns: how a product's body divides among its first three colours.

Each kind maps parameters in [0, 1] and local coordinates to two weights in [0, 1]: how much of the second colour
covers the first, and how much of the third covers both. All edges are anti-aliased for a pixel of side ``width``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dtc_jax.data.procedural.geometry import Field, bands, coverage, length, mix, switch, triangle_wave

PATTERN_PARAMETERS = 6


class Weights(NamedTuple):
    """Share of the second colour over the first, and of the third over both, in [0, 1]."""

    second: Field
    third: Field


def smooth_noise(u: Field, v: Field, phases: Field) -> Field:
    """Low-frequency noise of mean 0 within about [-1, 1]: sines bent by sines; ``phases`` [4] in turns."""
    a, b, c, d = (2 * jnp.pi * phases[i] for i in range(4))
    first = jnp.sin(2.1 * u + 1.3 * v + a + 1.3 * jnp.sin(1.9 * v - 0.7 * u + b))
    second = jnp.sin(2.9 * v - 1.6 * u + c + 1.1 * jnp.sin(2.3 * u + 0.9 * v + d))
    return 0.5 * (first + second)


class _Frame(NamedTuple):
    """What the patterns are made of: parameters, turned coordinates, and in periods, a pixel's size in each."""

    p: Field
    width: Field
    frequency: Field
    step: Field
    s: Field
    t: Field
    x: Field
    y: Field

    @property
    def offset(self) -> tuple[Field, Field]:
        return 0.7 * (self.p[2] - 0.5), 0.7 * (self.p[3] - 0.5)

    @property
    def noise(self) -> Field:
        return smooth_noise(1.4 * self.frequency * self.s, 1.4 * self.frequency * self.t, self.p[2:6])


def _plain(f: _Frame) -> Weights:
    return Weights(0.0, 0.0)


def _stripes(f: _Frame) -> Weights:
    return Weights(bands(f.x, mix(0.3, 0.7, f.p[4]), f.step), 0.0)


def _either(a: Field, b: Field) -> Field:
    return a + b - 2 * a * b


def _checks(f: _Frame) -> Weights:
    return Weights(_either(bands(f.x, 0.5, f.step), bands(f.y, 0.5, f.step)), 0.0)


def _dots(f: _Frame) -> Weights:
    radius = mix(0.24, 0.38, f.p[4])
    return Weights(coverage(length(f.x - jnp.floor(f.x) - 0.5, f.y - jnp.floor(f.y) - 0.5) - radius, f.step), 0.0)


def _chevrons(f: _Frame) -> Weights:
    return Weights(bands(f.x + mix(0.6, 1.2, f.p[4]) * triangle_wave(0.7 * f.y), 0.5, 1.4 * f.step), 0.0)


def _gradient(f: _Frame) -> Weights:
    return Weights(jnp.clip(0.5 + mix(0.5, 0.8, f.p[4]) * f.s, 0.0, 1.0), 0.0)


def _halves(f: _Frame) -> Weights:
    return Weights(coverage(f.s - f.offset[0], f.width), 0.0)


def _rings(f: _Frame) -> Weights:
    r = length(f.s - f.offset[0], f.t - f.offset[1])
    return Weights(bands(1.1 * f.frequency * r + f.p[4], mix(0.35, 0.65, f.p[5]), 1.1 * f.step), 0.0)


def _plaid(f: _Frame) -> Weights:
    wide = 0.5 * (bands(f.x, 0.45, f.step) + bands(f.y, 0.45, f.step))
    return Weights(wide, 0.85 * jnp.maximum(bands(f.x + 0.5, 0.16, f.step), bands(f.y + 0.5, 0.16, f.step)))


def _marble(f: _Frame) -> Weights:
    return Weights(0.5 + 0.5 * jnp.sin(3.5 * f.x + 2.6 * f.noise), 0.0)


def _photo(f: _Frame) -> Weights:
    other = smooth_noise(1.2 * f.frequency * f.t, 1.2 * f.frequency * f.s, f.p[1:5])
    return Weights(jnp.clip(0.5 + 0.8 * f.noise, 0.0, 1.0), jnp.clip(1.6 * other, 0.0, 1.0))


def _diamonds(f: _Frame) -> Weights:
    distance = triangle_wave(f.x) + triangle_wave(f.y)
    return Weights(coverage(distance - 0.5, 1.4 * f.step), coverage(distance - mix(0.12, 0.28, f.p[4]), 1.4 * f.step))


def _sunburst(f: _Frame) -> Weights:
    spokes = jnp.floor(3 + 4 * f.p[1])
    u, v = f.s - f.offset[0], f.t - f.offset[1]
    turn = spokes * jnp.arctan2(v, u) / (2 * jnp.pi) + f.p[4]
    # wedges narrower than a pixel fade into their mean
    return Weights(bands(turn, 0.5, f.width * spokes / (2 * jnp.pi * length(u, v)) + 0.02), 0.0)


def _band(f: _Frame) -> Weights:
    distance = jnp.abs(f.s - f.offset[0])
    outer, inner = mix(0.25, 0.5, f.p[4]), mix(0.05, 0.2, f.p[5])
    return Weights(coverage(distance - outer, f.width), coverage(distance - inner, f.width))


def _quarters(f: _Frame) -> Weights:
    a, b = coverage(f.s - f.offset[0], f.width), coverage(f.t - f.offset[1], f.width)
    return Weights(_either(a, b), a * b)


def _waves(f: _Frame) -> Weights:
    bent = f.x + mix(0.15, 0.35, f.p[4]) * jnp.sin(2.4 * f.y)
    return Weights(bands(bent, mix(0.35, 0.65, f.p[5]), 1.3 * f.step), 0.0)


KINDS = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "chevrons": _chevrons,
    "gradient": _gradient,
    "halves": _halves,
    "rings": _rings,
    "plaid": _plaid,
    "marble": _marble,
    "photo": _photo,
    "diamonds": _diamonds,
    "sunburst": _sunburst,
    "band": _band,
    "quarters": _quarters,
    "waves": _waves,
}

NAMES = tuple(KINDS)


def pattern_weights(kind: Int[Array, ""], parameters: Float[Array, "6"], u: Field, v: Field, width: Field) -> Weights:
    """Colour weights of one product's body at local coordinates (u, v)."""
    angle = jnp.pi * parameters[0]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    s, t = cosine * u + sine * v, cosine * v - sine * u
    frequency = mix(1.1, 2.3, parameters[1])

    def of(function: Callable[[_Frame], Weights]) -> Callable[..., Weights]:
        def run(p: Field, width: Field, s: Field, t: Field) -> Weights:
            x, y = frequency * s + p[2], frequency * t + p[3]
            return function(_Frame(p, width, frequency, width * frequency, s, t, x, y))

        return run

    return switch(kind, [of(function) for function in KINDS.values()], parameters, width, s, t)


def is_plain(kind: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether a logo is legible on this pattern without a patch under it."""
    return kind == NAMES.index("plain")
