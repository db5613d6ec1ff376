"""Weights by local path, or by their name on the Hugging Face hub where the network allows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dtc_jax.weights.tensor_source import WeightsError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
_LARGE = (".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf", ".xml")


def locate(name: str, folders: Sequence[str] = ("",), variant: str | None = None) -> Path:
    """The file or folder that is meant.

    Args:
        name: A local path, or `owner/name` on the hub, which is downloaded into huggingface_hub's cache once.
        folders: Of a repository on the hub, the folders that are needed; "" is its root.
        variant: Of the weights there, e.g. `fp16`.

    Raises:
        WeightsError: neither of these, or the hub cannot be reached and the cache has no such repository.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(name):
        raise WeightsError(f"{name}: no such file or folder")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        _reach()
        files = choose_files(HfApi().list_repo_files(name), folders, variant)
        return Path(snapshot_download(name, allow_patterns=files))
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
    except Exception as error:  # whatever the network's layers raise
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    try:
        return _cached(name, folders, variant)
    except Exception:  # not in the cache either
        here = Path(name.partition("/")[0])
        beside = f" (there is a folder {here}, without it)" if here.is_dir() else ""
        raise WeightsError(
            f"{name}: no such file or folder{beside}, and not to be had from the hub ({reason[:160]})"
        ) from None


def _reach() -> None:
    """One short request: without a network huggingface_hub would try for half a minute and write a page about it.

    Raises:
        Exception: whatever the network's layers raise if there is no way to the hub.
    """
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=5)


def _cached(name: str, folders: Sequence[str], variant: str | None) -> Path:
    """The repository as an earlier call left it in the cache: whole, as far as `choose_files` asked for it."""
    from huggingface_hub import snapshot_download

    # A pattern that nothing matches, so that what was never asked for is not missed.
    folder = Path(snapshot_download(name, allow_patterns=["nothing"], local_files_only=True))
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Path(snapshot_download(name, allow_patterns=choose_files(files, folders, variant), local_files_only=True))


def choose_files(files: Sequence[str], folders: Sequence[str], variant: str | None) -> list[str]:
    """Of a repository's files, the small ones and one set of weights per folder: safetensors before pickles.

    Args:
        files: All files.
        folders: The folders that are needed; "" is the root, which is taken where there are none of these.
        variant: e.g. `fp16`; None takes the plain files, or where there are none, any.
    """
    if not any(file.startswith(f"{folder}/") for file in files for folder in folders):
        folders = ("",)
    chosen: list[str] = []
    for folder in dict.fromkeys(["", *folders]):
        here = [file for file in files if file.rpartition("/")[0] == folder]
        chosen += [file for file in here if not file.endswith((*_WEIGHTS, *_LARGE))]
        if folder not in folders:
            continue
        for ending in (".safetensors", ".bin", *_WEIGHTS[2:]):
            weights = [file for file in here if file.endswith(ending)]
            plain = [file for file in weights if _variant_of(file) == variant]
            if weights:
                chosen += plain or weights
                break
    return chosen


def _variant_of(file: str) -> str | None:
    """`fp16` of `unet/diffusion_pytorch_model.fp16.safetensors` and of its shards."""
    middle = file.rpartition("/")[2].split(".")[1:-1]
    return re.sub(r"-\d+-of-\d+$", "", middle[0]) if middle else None
