"""Between Gradio and the event functions: errors in one line; no path or address of a request is read."""

from __future__ import annotations

import html
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image, UnidentifiedImageError

from dtc_jax.app.limits import Limits, check_pixels
from dtc_jax.data.images import InputError

logger = logging.getLogger(__name__)

NOT_AN_IMAGE = "an upload is not an image that can be read; give a JPEG or PNG"
NOT_UPLOADED = (
    "files must be uploaded: a path or an address is not read; from Python send gradio_client.handle_file(...)"
)
SERVER_ERROR = "the server could not do this; its log says why"

MAX_LAYERS = 8
"""Layers that an image editor may send; this page's has one."""

Parameters = ParamSpec("Parameters")
Item = TypeVar("Item")


def one_line_error(message: str) -> gr.Error:
    """What the page shows as a notice and a client raises."""
    return gr.Error(html.escape(" ".join(message.split()), quote=False), print_exception=False)


def _as_shown(error: Exception) -> Exception:
    """The error that may leave the server."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, InputError):
        return one_line_error(str(error))
    logger.error("an event failed", exc_info=error)
    return one_line_error(SERVER_ERROR)


def shown(function: Callable[Parameters, Item]) -> Callable[Parameters, Item]:
    """An event function whose errors are shown in one line; a traceback goes to the log only."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Item:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise _as_shown(error) from None

    return call


def shown_steps(function: Callable[Parameters, Iterator[Item]]) -> Callable[Parameters, Iterator[Item]]:
    """`shown` for event functions that yield."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Iterator[Item]:
        try:
            yield from function(*args, **kwargs)
        except Exception as error:
            raise _as_shown(error) from None

    return call


def check_files(data: Any, uploads: Path) -> None:
    """Refuse what names a file otherwise than by the name that an upload was given.

    Gradio itself fetches addresses, decodes data in them, and looks only at those paths that are marked as files.

    Args:
        data: the JSON of a request's inputs.
        uploads: the folder of what was uploaded.

    Raises:
        gr.Error: a path that leads elsewhere, or an address.
    """
    if isinstance(data, dict):
        path, url = data.get("path"), data.get("url")
        if path is not None and not (isinstance(path, str) and _lies_in(path, uploads)):
            raise one_line_error(NOT_UPLOADED)
        if url is not None and (path is None or not isinstance(url, str) or url.startswith("data:")):
            raise one_line_error(NOT_UPLOADED)
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            check_files(value, uploads)


def _lies_in(path: str, folder: Path) -> bool:
    """Whether a file is below a folder, links followed."""
    try:
        return Path(path).is_absolute() and Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


class GuardedBlocks(gr.Blocks):
    """Blocks that look at every input before Gradio does, and say in one line what is wrong with it."""

    limits: Limits = Limits()

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """See `gr.Blocks`.

        Raises:
            gr.Error: an input that cannot be used.
        """
        check_files(inputs, Path(get_upload_folder()))
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            if isinstance(block, gr.ImageEditor) and isinstance(value, dict):
                self._check_editor(block, value)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            logger.info("an input was refused: %s", " ".join(str(error).split()))
            if isinstance(error.__cause__, UnidentifiedImageError):
                raise one_line_error(NOT_AN_IMAGE) from None
            raise one_line_error(NOT_UPLOADED) from None

    def _check_editor(self, editor: gr.ImageEditor, value: dict[str, Any]) -> None:
        """The editor decodes its images before an event sees them: their sizes are looked at here."""
        blobs = editor.blob_storage.get(str(value.get("id")))
        for blob in (blobs.background, blobs.composite, *blobs.layers) if blobs is not None else ():
            if blob is None:
                continue
            try:
                with Image.open(BytesIO(blob)) as image:
                    check_pixels(image.size, "scene", self.limits)
            except InputError as error:
                raise one_line_error(str(error)) from None
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                raise one_line_error(NOT_AN_IMAGE) from None


class _Newest(OrderedDict[str, Any]):
    """A dict of at most so many items: the oldest goes first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self.most:
            self.popitem(last=False)


def bound_editor(editor: gr.ImageEditor, limits: Limits) -> None:
    """Bound what an image editor keeps of the images that browsers send it between two events."""
    editor.blob_storage = _Newest(limits.max_sessions)
    accept_blobs = editor.accept_blobs

    def accept_few(data: Any) -> None:
        index = str(data.data.get("index") or "0")
        if index != "null" and not (index.isdecimal() and int(index) < MAX_LAYERS):
            raise one_line_error(f"scene: more than {MAX_LAYERS} layers")
        accept_blobs(data)

    accept_few._is_server_fn = True  # type: ignore[attr-defined]
    editor.accept_blobs = accept_few


Scope = MutableMapping[str, Any]


class BodyLimit:
    """ASGI middleware: a request with a larger body is answered 413."""

    def __init__(self, app: Callable[..., Any], most_bytes: int) -> None:
        self.app = app
        self.most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.most_bytes:
            await self._refuse(send)
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # Without a declared length: what the application sees is a caller who left.
            return {"type": "http.disconnect"} if received > self.most_bytes else message

        await self.app(scope, counted, send)

    async def _refuse(self, send: Callable[..., Any]) -> None:
        text = f"the request is larger than {self.most_bytes / 1e6:.0f} megabytes; send smaller files"
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": text}).encode()})
