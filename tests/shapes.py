"""Checks the package's jaxtyping annotations at run time, for jaxtyping's import hook (see conftest.py).

What is checked is arrays: their shapes and dtypes, with the names of dimensions bound across one call. Other
annotations are left to mypy. (typeguard 4 cannot read the functions that the hook makes, and beartype rejects plain
protocols and integers for floats.)
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function so that arrays which do not match their annotation raise TypeError."""
    signature = inspect.signature(function)
    checked = {name: p.annotation for name, p in signature.parameters.items() if _has_array(p.annotation)}
    result_hint = signature.return_annotation

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        for name, hint in checked.items():
            if name in arguments and not _matches(arguments[name], hint):
                raise TypeError(f"{name} is {_describe(arguments[name])}, not {hint}")
        result = function(*args, **kwargs)
        if not _matches(result, result_hint):
            raise TypeError(f"the result is {_describe(result)}, not {result_hint}")
        return result

    return wrapper


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
    if not _has_array(hint):
        return True
    if _is_array_hint(hint):
        return _fits(value, hint)
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
