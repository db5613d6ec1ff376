"""The model folder: config.json beside one safetensors file per network.

    config.json                    the experiment's configuration
    unet.safetensors               one file per top-level key of the parameters; tensors are named by their Flax paths,
    hint_encoder.safetensors       joined with "/": `down_blocks_0/resnets_0/conv1/kernel`
    null_tokens.safetensors        a network that is one bare array has a single tensor, named `value`
    ...

It is what training exports, conversion writes and reads, and the package ships. A folder is written beside its
destination and renamed, so that a reader never meets half of one.
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import DTypeLike

from dtc_jax.config import ConfigError, ExperimentConfig, config_to_json, load_config

CONFIG_FILE = "config.json"
BARE_ARRAY = "value"
"""Name of the tensor of a network that is a single array."""

Params = dict[str, Any]
"""A nested dict of arrays; the first level is the network's name."""


class ModelFolderError(ValueError):
    """A folder or its tensors are not what they should be; the message is one line and says what to do."""


def flatten_params(params: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Flatten a nested dict of arrays to {"path/of/keys": array}, sorted by path."""
    return dict(sorted(_leaves(params, "", separator)))


def _leaves(tree: Mapping[str, Any], prefix: str, separator: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, path + separator, separator)
        else:
            yield path, value


def unflatten_params(flat: Mapping[str, Any], separator: str = "/") -> Params:
    """Inverse of `flatten_params`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split(separator)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def cast_params(params: Mapping[str, Any], dtype: DTypeLike) -> Params:
    """Every floating-point array as numpy in `dtype`; integer arrays are left as they are."""
    target = np.dtype(dtype)
    flat = {path: np.asarray(value) for path, value in flatten_params(params).items()}
    return unflatten_params({path: value.astype(target) if _is_float(value) else value for path, value in flat.items()})


def _is_float(value: np.ndarray) -> bool:
    # bfloat16 and the 8-bit floats come from ml_dtypes, whose kind is "V".
    return value.dtype.kind in "fV"


def check_params(params: Mapping[str, Any], expected_shapes: Mapping[str, Any], where: str = "parameters") -> None:
    """Account for every tensor.

    Args:
        params: nested dict of arrays.
        expected_shapes: nested dict of anything with a `shape`: what `jax.eval_shape` of the initialiser returns.
        where: what the message calls the parameters, e.g. the folder's path.

    Raises:
        ModelFolderError: names the first missing, unexpected or misshapen tensor and how many there are of each kind.
    """
    found, expected = flatten_params(params), flatten_params(expected_shapes)
    missing = [path for path in expected if path not in found]
    unexpected = [path for path in found if path not in expected]
    misshapen = [
        f"{path} is {tuple(found[path].shape)}, not {tuple(expected[path].shape)}"
        for path in expected
        if path in found and tuple(found[path].shape) != tuple(expected[path].shape)
    ]
    kinds = [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]
    problems = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names]
    if problems:
        raise ModelFolderError(f"{where}: tensors do not fit the configuration: " + "; ".join(problems))


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def is_model_folder(directory: Path) -> bool:
    """Whether the folder holds config.json and at least one network."""
    return (directory / CONFIG_FILE).is_file() and any(directory.glob("*.safetensors"))


def save_model_folder(
    directory: str | os.PathLike[str],
    config: ExperimentConfig,
    params: Mapping[str, Any],
    dtype: DTypeLike | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write a model folder; an older one in its place is replaced.

    Args:
        directory: destination; parents are made.
        config: stored as config.json.
        params: nested dict of arrays (numpy, or JAX arrays that this process can fetch).
        dtype: store floating-point arrays in this type, e.g. "float16"; None keeps theirs.
        notes: further small files, {name: text}; a name may be FOLDER/NAME.

    Returns:
        The destination.

    Raises:
        ModelFolderError: the destination exists and is not a model folder, or a value is out of the type's range.
        OSError: the files cannot be written (a full disk); nothing is left of them, and an older folder is as it was.
    """
    target = Path(directory)
    if target.exists() and not is_model_folder(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ModelFolderError(f"{target}: exists and is not a model folder; choose another name or remove it")
    networks = {name: _network_arrays(name, network, dtype) for name, network in params.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        os.chmod(temporary, 0o777 & ~_umask())  # mkdtemp makes private folders
        (temporary / CONFIG_FILE).write_text(config_to_json(config))
        for name, text in (notes or {}).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")
        for name, arrays in networks.items():
            safetensors.numpy.save_file(arrays, temporary / f"{name}.safetensors", metadata={"format": "flax"})
        _replace_folder(temporary, target)
    except safetensors.SafetensorError as error:  # its form of a full disk
        raise OSError(f"{target}: cannot be written ({_one_line(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _network_arrays(name: str, network: Any, dtype: DTypeLike | None) -> dict[str, np.ndarray]:
    flat = flatten_params(network) if isinstance(network, Mapping) else {BARE_ARRAY: network}
    arrays = {}
    for path, value in flat.items():
        array = np.asarray(value)
        with np.errstate(over="ignore"):  # checked below
            stored = array.astype(np.dtype(dtype)) if dtype is not None and _is_float(array) else array
        if stored is not array and not np.isfinite(stored.astype(np.float32)).all() and _all_finite(array):
            raise ModelFolderError(f"{name}/{path}: values beyond the range of {np.dtype(dtype).name}; store float32")
        # ascontiguousarray would make a scalar an array of one.
        arrays[path] = np.asarray(stored, order="C")
    return arrays


def _all_finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array.astype(np.float32)).all())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace_folder(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; what was there moves aside first (folders cannot be replaced in one rename)."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(aside / target.name)
    try:
        temporary.rename(target)
    except OSError:
        (aside / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_model_folder(
    directory: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    networks: tuple[str, ...] | None = None,
) -> tuple[ExperimentConfig, Params]:
    """Read a model folder.

    Args:
        directory: a model folder (`resolve_checkpoint` finds the one of a run).
        dtype: convert floating-point arrays to this type (float16 stored, float32 wanted); None keeps the stored one.
        networks: read these only; None reads all.

    Returns:
        The configuration, and the parameters as a nested dict of numpy arrays.

    Raises:
        ModelFolderError: not a model folder, or a file that cannot be read.
    """
    folder = Path(directory)
    config = load_config_of(folder)
    files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    absent = [name for name in networks or () if name not in files]
    if absent or not files:
        wanted = ", ".join(f"{name}.safetensors" for name in absent) or "no *.safetensors files"
        raise ModelFolderError(f"{folder}: not a complete model folder: {'missing ' if absent else ''}{wanted}")
    params: Params = {}
    for name in networks or tuple(files):
        try:
            arrays = safetensors.numpy.load_file(files[name])
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelFolderError(f"{files[name]}: not a readable safetensors file ({_one_line(error)})") from None
        params[name] = arrays[BARE_ARRAY] if set(arrays) == {BARE_ARRAY} else unflatten_params(arrays)
    return config, params if dtype is None else cast_params(params, dtype)


def load_config_of(folder: Path) -> ExperimentConfig:
    """The configuration in a model or run folder.

    Raises:
        ModelFolderError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder; a model folder holds {CONFIG_FILE} and *.safetensors files")
    try:
        return load_config(folder / CONFIG_FILE)
    except ConfigError as error:
        raise ModelFolderError(f"{folder}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def shipped_model_folder() -> Path:
    """The model folder that comes with the package.

    Raises:
        ModelFolderError: this installation has none.
    """
    folder = Path(str(importlib.resources.files("dtc_jax"))) / "shipped" / "tiny"
    if not is_model_folder(folder):
        raise ModelFolderError(f"{folder}: this installation ships no model; name one with --checkpoint")
    return folder


def resolve_checkpoint(path: str | os.PathLike[str] | None = None) -> Path:
    """The model folder that a checkpoint argument means.

    Args:
        path: a model folder, a run folder (its `model/` folder, the moving average that training exports, is taken),
            or None for the shipped model.

    Raises:
        ModelFolderError: neither of these.
    """
    if path is None:
        return shipped_model_folder()
    folder = Path(path)
    if not folder.exists():
        raise ModelFolderError(f"{folder}: no such folder; --checkpoint takes a model folder or a run folder")
    exported = folder / "model"
    if is_model_folder(exported):
        return exported
    if is_model_folder(folder):
        return folder
    if (folder / "checkpoints").is_dir():
        raise ModelFolderError(f"{exported}: this run has exported no model yet; wait for its next checkpoint")
    raise ModelFolderError(f"{folder}: neither a model folder ({CONFIG_FILE}, *.safetensors) nor a run folder")
