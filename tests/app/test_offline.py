"""Page and endpoint without a network: nothing is looked up, connected to or loaded from anywhere but this machine."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from dtc_jax.app.examples import product_path, room_path
from dtc_jax.data.images import read_scene
from dtc_jax.inference.pipeline import Pipeline
from tests.app.conftest import LIMITS

pytest.importorskip("gradio", reason="Gradio is not installed (the extra `app`)")

LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None}
# What a browser loads by itself, in HTML, style sheets and scripts; a link is followed by whoever clicks on it.
LOADED = re.compile(
    r"""<(?:script|img|iframe|link|source|video)\b[^>]*?\b(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|url\(\s*["']?((?:https?:)?//[^"')]+)|@import\s+["']((?:https?:)?//[^"']+)""",
    re.IGNORECASE,
)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Hosts of attempts to leave this machine; each of them fails, as it would without a network."""
    attempts: list[Any] = []
    connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: Any) -> None:
        if (host.decode() if isinstance(host, bytes) else host) not in LOCAL:
            attempts.append(host)
            raise OSError(101, "Network is unreachable")

    def checked(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return original(self, address)

        return call

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        check(host)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", checked(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", checked(connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield attempts


def test_the_block_blocks(refused: list[Any]) -> None:
    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.socket().connect(("192.0.2.1", 80)),
        lambda: socket.getaddrinfo("fonts.example", 443),
    ):
        with pytest.raises(OSError, match="unreachable"):
            attempt()
    assert refused == ["192.0.2.1", "192.0.2.1", "fonts.example"]
    for loaded in (
        '<script async src="https://x.example/y.js">',
        "@import url(//x.example/y.css)",
        "url('http://x/y')",
    ):
        assert LOADED.search(loaded)
    assert not LOADED.search('<a href="https://x.example">')


def test_everything_works_without_a_network(
    pipeline: Pipeline, refused: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the start of the server to a picture, and the page with all that a browser would load of it first."""
    from dtc_jax.app.command import free_port, serve

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    scene, product, box = room_path("hall"), product_path("poster"), "134,34,182,106"
    page = serve(pipeline, LIMITS, port=free_port("127.0.0.1", 0))
    try:
        address = f"http://127.0.0.1:{page.server_port}"
        # Without gradio_client, which itself asks for things elsewhere.
        upload = [("files", (path.name, path.read_bytes(), "image/jpeg")) for path in (scene, product)]
        uploaded = httpx.post(f"{address}/gradio_api/upload", files=upload).json()
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in uploaded]
        request = {"data": [*files, None, box, 1, 1, 2.0, None, 3]}
        event = httpx.post(f"{address}/gradio_api/call/generate", json=request).json()["event_id"]
        answer = httpx.get(f"{address}/gradio_api/call/generate/{event}", timeout=120).text
        complete = answer.split("event: complete\ndata: ")[1].splitlines()[0]
        url = json.loads(complete)[0][0]["image"]["url"]
        assert url.startswith(address)
        (tmp_path / "result").write_bytes(httpx.get(url).content)
        found = read_scene(tmp_path / "result")
        html = httpx.get(address).text
        parts = [html, httpx.get(f"{address}/config").text, httpx.get(f"{address}/theme.css").text]
        loaded = re.findall(r"""(?:src|href)=["'](\./[^"']+\.(?:css|js))["']""", html)
        parts += [httpx.get(f"{address}/{name}").text for name in loaded]
    finally:
        page.close()
    before = read_scene(scene)
    assert found.shape == before.shape and (found != before).any()
    assert refused == []
    assert len(parts) > 3 and all(len(part) > 100 for part in parts)
    elsewhere = [url for part in parts for url in LOADED.findall(part)]
    assert elsewhere == []
    assert np.all(found[:30] == before[:30]), "outside the box"
