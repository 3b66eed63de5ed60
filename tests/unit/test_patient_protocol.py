"""Clients that never finish a request's head lose their connection, and no others do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from rankcast.delivery.serving import protocol
from rankcast.delivery.serving.protocol import PatientProtocol

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
TIMEOUT_S = 0.1


async def app(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3 * TIMEOUT_S)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    ("sent", "n_answers"),
    [(b"", 0), (b"GET / HT", 0), (REQUEST, 1), (REQUEST + b"GET / HT", 1), (REQUEST * 2, 2)],
)
def test_a_head_has_to_arrive(sent: bytes, n_answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", TIMEOUT_S)

    assert answer_to(sent).count(b"204 No Content") == n_answers


def test_a_head_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 1000.0)
    line = b"X-Y: " + b"y" * 1000 + b"\r\n"
    assert b"204 No Content" not in answer_to(REQUEST[:-2] + line * 100)


def answer_to(sent: bytes) -> bytes:
    """Send bytes and return all that comes until the server closes the connection."""

    async def ask() -> bytes:
        config = uvicorn.Config(
            app, port=0, http=PatientProtocol, lifespan="off", log_config=None, timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = b""
        with contextlib.suppress(ConnectionError):  # it does not read to the end
            answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await server.shutdown()
        return answer

    return asyncio.run(ask())
