"""The command line of the page in the browser.

    python -m dtc_jax.app
    python -m dtc_jax.app --checkpoint runs/shop --host 0.0.0.0 --port 8080

Errors of use end with exit code 2 and one line on the standard error output.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dtc_jax.app.limits import Limits
from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError
from dtc_jax.data.images import InputError
from dtc_jax.weights.model_folder import ModelFolderError
from dtc_jax.weights.run_folder import checkpoint_config

if TYPE_CHECKING:
    import gradio as gr

    from dtc_jax.inference.pipeline import Pipeline

_PROGRAM = "python -m dtc_jax.app"
_BODY_OVERHEAD = 2**20
"""Bytes of a request beside the file in it."""


@dataclass(frozen=True, kw_only=True)
class AppArguments:
    """Serve a page on which to paint a product into a photo, and an endpoint that does the same for programs."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, without a password."""
    port: int = 7860
    """Port to listen on; 0 takes any that is free."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")
    ] = None
    """Model folder or run folder."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = Limits()


@reports_errors(InputError, ModelFolderError, ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    arguments = parse_arguments(AppArguments, sys.argv[1:] if argv is None else argv, _PROGRAM)
    run(arguments)
    return 0


def run(arguments: AppArguments) -> None:
    """Load the model and serve until interrupted.

    Raises:
        UsageError: an address or port that cannot be listened on, or Gradio is not installed.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was uploaded is removed then, too
    with tempfile.TemporaryDirectory(prefix="dtc-app-") as folder:
        _prepare_gradio(folder)
        port = free_port(arguments.host, arguments.port)
        # What is wrong with it is said before JAX is loaded, and that it has no use for a reference.
        _ = checkpoint_config(arguments.checkpoint).model.reference_size
        from dtc_jax.inference.pipeline import Pipeline
        from dtc_jax.inference.runtime import enable_compilation_cache

        enable_compilation_cache()
        pipeline = Pipeline.load(arguments.checkpoint)
        print("compiling the sampler, so that the first visitor need not wait for it ...", flush=True)
        warm_up(pipeline)
        page = serve(pipeline, arguments.limits, arguments.host, port)
        print(f"open http://{_reachable(arguments.host)}:{page.server_port} in a browser; Ctrl+C stops", flush=True)
        page.block_thread()


def warm_up(pipeline: Pipeline) -> None:
    """Paint one of the examples, in one step, which compiles what requests with the checkpoint's choices need."""
    from dtc_jax.app.examples import EXAMPLES, read_product, read_room
    from dtc_jax.app.painting import Choices, paint
    from dtc_jax.inference.settings import SamplingChoices

    example = EXAMPLES[0]
    choices = Choices(sampling=SamplingChoices(num_inference_steps=1))
    for _ in paint(pipeline, read_room(example.room), example.mask(), read_product(example.product), choices, Limits()):
        pass


def serve(pipeline: Pipeline, limits: Limits, host: str = "127.0.0.1", port: int = 7860) -> gr.Blocks:
    """Start the server in threads of its own and return its page; `page.close()` stops it.

    Args:
        pipeline: the model.
        limits: what requests may use.
        host: address to listen on.
        port: a free port.

    Raises:
        UsageError: the port is taken.
    """
    from starlette.middleware import Middleware

    from dtc_jax.app.events import Server
    from dtc_jax.app.guard import BodyLimit
    from dtc_jax.app.layout import build_page
    from dtc_jax.app.style import CSS, theme

    page = build_page(Server(pipeline, limits))
    page.queue(max_size=limits.max_queue, default_concurrency_limit=4)
    most_bytes = limits.max_upload_megabytes * 10**6
    options: dict[str, Any] = {
        "allowed_paths": [],
        "app_kwargs": {"middleware": [Middleware(BodyLimit, most_bytes=most_bytes + _BODY_OVERHEAD)]},
        "css": CSS,
        "enable_monitoring": False,
        "footer_links": ["api"],
        "max_file_size": most_bytes,
        "mcp_server": False,
        "prevent_thread_lock": True,
        "pwa": False,
        "quiet": True,
        "run_history": False,
        "server_name": host,
        "server_port": port,
        "share": False,
        "show_error": False,
        "ssr_mode": False,
        "state_session_capacity": limits.max_sessions,
        "theme": theme(),
    }
    try:
        page.launch(**options)
    except OSError:
        raise _taken(host, port) from None
    return page


def _prepare_gradio(folder: str) -> None:
    """Uploads go to a folder of this process alone, and nothing is reported or asked for anywhere.

    Before Gradio is imported: it reads these when it is.

    Raises:
        UsageError: Gradio is not installed.
    """
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UsageError("the page needs Gradio, which is not installed: pip install 'dtc-jax[app]'") from None


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        UsageError: it is taken, or there is no such address.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"--port must be from 0 to {2**16 - 1}, not {port}")
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return int(listener.getsockname()[1])
    except socket.gaierror:
        raise UsageError(f"--host {host}: no such address") from None
    except OSError as error:
        if port == 0:
            raise UsageError(f"--host {host}: cannot listen there ({error.strerror})") from None
        raise _taken(host, port, error.strerror) from None


def _taken(host: str, port: int, reason: str | None = None) -> UsageError:
    why = reason or "it is in use"
    return UsageError(f"cannot listen on {host}:{port} ({why}); choose another with --port, or --port 0 for any")


def _reachable(host: str) -> str:
    """The address to open in a browser of this machine."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
