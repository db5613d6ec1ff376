"""Checks the package's jaxtyping annotations at run time (see conftest.py).

What is checked is arrays: their shapes and dtypes, with the names of dimensions bound across one call. Other
annotations are left to mypy. (typeguard 4 cannot read the functions that jaxtyping's hook makes, and beartype rejects
plain protocols and integers for floats.)

jaxtyping wraps every function of the package in one that binds its arguments three times a call: a quarter of the
tests' time, for functions most of which take no arrays. Here the others stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jaxtyping
import numpy as np

one_call = jaxtyping.jaxtyped
"""`with one_call("context")`: within it the name of a dimension has one size. Taken before `install` replaces it."""


def install(package: str) -> None:
    """Check what is imported of a package from now on."""

    def jaxtyped(*arguments: Any, **options: Any) -> Any:
        return check_arrays if "typechecker" in options else one_call(*arguments)

    # The name by which the import hook decorates; the type checker that it is told to use is never called.
    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]
    jaxtyping.install_import_hook(package, "tests.shapes.check_arrays")


def check_arrays(function: Any) -> Any:
    """Wraps a function, or a dataclass's, so that arrays which do not match their annotation raise TypeError."""
    if isinstance(function, type):
        if dataclasses.is_dataclass(function):
            function.__init__ = check_arrays(function.__init__)  # type: ignore[misc]
        return function
    signature = inspect.signature(function)
    hints = {name: _evaluated(hint, function) for name, hint in function.__annotations__.items()}
    hints = {name: hint for name, hint in hints.items() if _has_array(hint)}
    if not hints:
        return function
    result_hint = hints.pop("return", None)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        with one_call("context"):
            for name, hint in hints.items():
                if name in arguments and not _matches(arguments[name], hint):
                    raise TypeError(f"{name} is {_describe(arguments[name])}, not {hint}")
            result = function(*args, **kwargs)
            if result_hint is not None and not _matches(result, result_hint):
                raise TypeError(f"the result is {_describe(result)}, not {result_hint}")
            return result

    return wrapper


def _evaluated(hint: Any, function: Callable[..., Any]) -> Any:
    """What a postponed annotation says; one that names what is not there at run time has no array."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)
    except (NameError, AttributeError):
        return None


def _is_array_hint(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "dim_str") and hasattr(hint, "array_type")


def _fits(value: Any, hint: Any) -> bool:
    # A host array may stand for a device array, as everywhere in JAX.
    if isinstance(value, np.ndarray) and hint.array_type is jax.Array:
        hint = hint.dtype[np.ndarray, hint.dim_str]
    return isinstance(value, hint)


def _is_plain(value: Any, hint: Any) -> bool:
    return hint is Any or (isinstance(hint, type) and isinstance(value, hint))


def _has_array(hint: Any) -> bool:
    return _is_array_hint(hint) or any(_has_array(argument) for argument in typing.get_args(hint))


def _matches(value: Any, hint: Any) -> bool:
    if _is_array_hint(hint):
        return _fits(value, hint)
    if not _has_array(hint):
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if not isinstance(value, jax.Array | np.ndarray):
            return any(not _is_array_hint(argument) for argument in arguments)
        return any(
            _fits(value, argument) if _is_array_hint(argument) else _is_plain(value, argument) for argument in arguments
        )
    if origin is tuple and isinstance(value, tuple) and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(_matches, value, arguments))
    return True


def _describe(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"{type(value).__name__} {value.dtype}{list(value.shape)}"
    return type(value).__name__
