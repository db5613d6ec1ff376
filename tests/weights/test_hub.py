"""A repository of the hub is downloaded from a real server (a local one that speaks the hub's protocol), once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "somebody/small-model"
REVISION = "0123456789abcdef0123456789abcdef01234567"

DOWNLOAD = """
import json, sys
from dtc_jax.weights.hub import locate
from dtc_jax.weights.tensor_source import WeightsError
try:
    folder = locate(sys.argv[1], ("unet",))
except WeightsError as error:
    print(json.dumps({"error": str(error)}))
else:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    print(json.dumps({"folder": str(folder), "files": files}))
"""


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub: the listing of a repository, and its files (hub API, `/api/models`)."""

    def __init__(self, files: dict[str, bytes], log: list[str], *arguments: object) -> None:
        self.files, self.log = files, log
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        self.log.append(f"{self.command} {urlsplit(self.path).path}")

    def send_file(self) -> bytes | None:
        path = unquote(urlsplit(self.path).path)
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/")
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in self.files.items()
            ]
            return self.reply(json.dumps(entries).encode())
        if path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": file} for file in self.files]
            return self.reply(json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": siblings}).encode())
        if name in self.files:
            return self.reply(self.files[name], {"ETag": f'"{hashlib.sha1(self.files[name]).hexdigest()}"'})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def reply(self, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        self.send_response(200)
        for key, value in {"X-Repo-Commit": REVISION, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        return body

    def do_HEAD(self) -> None:
        self.send_file()

    def do_GET(self) -> None:
        self.wfile.write(self.send_file() or b"")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    weights = tmp_path / "weights.safetensors"
    save_file({"conv_in.weight": np.arange(6, dtype=np.float32)}, weights)
    files = {
        "model_index.json": b"{}",
        "unet/config.json": b'{"in_channels": 4}',
        "unet/diffusion_pytorch_model.safetensors": weights.read_bytes(),
        "unet/diffusion_pytorch_model.fp16.safetensors": b"not asked for",
        "unet/diffusion_pytorch_model.bin": b"not asked for",
        "safety_checker/model.safetensors": b"not asked for",
    }
    log: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files, log))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files, log
    server.shutdown()
    server.server_close()
    thread.join()


def download(name: str, endpoint: str, cache: Path) -> dict[str, object]:
    # huggingface_hub reads its settings when it is imported: in a process of its own.
    proxies = {name: "" for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY")}
    environment = {
        **os.environ,
        **proxies,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, name], env=environment, cwd=cache.parent, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1]) | {"warnings": process.stderr}


def test_downloads_once_and_works_offline_after(hub: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    endpoint, files, log = hub
    first = download(REPOSITORY, endpoint, tmp_path / "cache")
    wanted = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert first["files"] == wanted
    for name in wanted:
        assert (Path(str(first["folder"])) / name).read_bytes() == files[name]
    transfers = [line for line in log if line.startswith(f"GET /{REPOSITORY}/resolve/")]
    assert len(transfers) == len(wanted)

    assert download(REPOSITORY, endpoint, tmp_path / "cache")["folder"] == first["folder"]
    assert [line for line in log if line.startswith(f"GET /{REPOSITORY}/resolve/")] == transfers
    # The server is gone: the cache serves.
    offline = download(REPOSITORY, "http://127.0.0.1:9", tmp_path / "cache")
    assert (offline["folder"], offline["files"]) == (first["folder"], first["files"])


def test_absent_repository_is_one_line(hub: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    message = download("somebody/absent", hub[0], tmp_path / "cache")["error"]
    assert isinstance(message, str) and "\n" not in message
    assert message.startswith("somebody/absent: no such file or folder, and not to be had from the hub (")


def test_without_a_network_a_mistyped_path_is_one_line_at_once(tmp_path: Path) -> None:
    (tmp_path / "somebody").mkdir()
    said = download("somebody/mistyped", "http://127.0.0.1:9", tmp_path / "cache")
    message = said["error"]
    assert isinstance(message, str) and message.startswith("somebody/mistyped: no such file or folder (there is a ")
    assert "not to be had from the hub (" in message and "Retrying" not in str(said["warnings"])
