"""Clients that never finish a request's head lose their connection, and no others do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from helpers.waiting import DEADLOCK_S
from rankcast.server import process
from rankcast.server.process import LARGEST_HEAD, PatientProtocol

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Connection:
    """A client's connection, the server's end of it, and an app that answers when it is told to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: Any
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        """Send a piece of a head and wait until the server has it."""
        n_head = self.server._n_head + len(data)
        self.writer.write(data)
        await until(lambda: self.server._n_head == n_head)

    async def answered(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLOCK_S):
        while not condition():  # noqa: ASYNC110 the server has no event to wait for
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _no_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no timer of a head end by itself: tests do what it would do."""
    monkeypatch.setattr(process, "HEAD_TIMEOUT_S", DEADLOCK_S)


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await connection.answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(
        app, port=0, http=PatientProtocol, lifespan="off", log_config=None, timeout_keep_alive=0
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await until(lambda: bool(server.server_state.connections))
    connection = Connection(reader, writer, next(iter(server.server_state.connections)))
    try:
        yield connection
    finally:
        connection.answer.set()
        writer.close()
        await server.shutdown()


@pytest.mark.parametrize("pieces", [[], [b"GET / HT"], [b"GET / HT", b"TP/1.1\r\nHo"]])
def test_a_head_has_to_arrive_in_time(pieces: list[bytes]) -> None:
    async def wait() -> None:
        async with connected() as connection:
            due = connection.server._head_due
            for piece in pieces:
                await connection.send(piece)
                assert connection.server._head_due is due  # a piece gives no more time
            assert due.when() - asyncio.get_running_loop().time() <= DEADLOCK_S
            due.cancel()
            connection.server._give_up()  # what the timer would do
            assert await connection.reader.read() == b""

    asyncio.run(wait())


@pytest.mark.parametrize("more", [b"", b"GET / HT", REQUEST])
def test_an_answer_has_all_the_time_it_takes(more: bytes) -> None:
    async def ask() -> None:
        async with connected() as connection:
            connection.writer.write(REQUEST + more)
            await until(lambda: connection.server.cycle is not None)
            assert connection.server._head_due is None
            connection.server._give_up()
            assert not connection.server.transport.is_closing()
            connection.answer.set()
            for _ in range(2 if more == REQUEST else 1):
                assert (await connection.answered()).startswith(b"HTTP/1.1 204 No Content")
            assert await connection.reader.read() == b""  # idle, or in a head that does not come

    asyncio.run(ask())


def test_a_head_has_an_end() -> None:
    async def ask() -> None:
        async with connected() as connection:
            line = b"X-Y: " + b"y" * 1000 + b"\r\n"
            connection.answer.set()
            connection.writer.write(REQUEST[:-2] + line * (LARGEST_HEAD // len(line) + 100))
            with contextlib.suppress(ConnectionError):  # it does not read to the end
                assert b"204 No Content" not in await connection.reader.read()
            await until(connection.server.transport.is_closing)

    asyncio.run(ask())
