"""A port for each device, behind which bytes pass as slowly as its link would carry them.

All links live in one thread with an event loop. A connection may be reset by chance, at a byte that
is drawn beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rankcast.errors import DeliveryError
from rankcast.simulation.shaping import RateSchedule, Shaper

_RESET_WITHIN = (1, 20_000)
"""Bytes of an answer before which a reset comes, drawn on a logarithmic scale."""
_MOST_DELAYS = 20_000
_BUFFER_BYTES = 2**14
_HOST = "127.0.0.1"
_STEP_S = 0.1
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class DeviceLink:
    """The link of one device.

    Attributes:
        down: towards the device.
        up: from it.
        n_resets: connections that were reset on purpose.
        port: where the device reaches the server; 0 for any that is free, until the links are up.
    """

    down: Shaper
    up: Shaper
    n_resets: int = 0
    port: int = 0

    @classmethod
    def of(cls, schedule: RateSchedule) -> DeviceLink:
        """Return a link with the same rate in both directions."""
        return cls(Shaper(schedule), Shaper(schedule))


class LinkProxy:
    """Passes bytes between devices and a server, over their links.

    Args:
        links: one for each device.
        server_port: gives the port of the server on this machine, which may restart elsewhere.
        resets: probability that a connection is to be reset.
        rng: draws which, and where.
    """

    def __init__(
        self,
        links: Sequence[DeviceLink],
        server_port: Callable[[], int],
        *,
        resets: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.links, self._server_port = links, server_port
        self._resets, self._rng = resets, rng or np.random.default_rng()
        self._began_s = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._servers: list[asyncio.Server] = []
        self.late_s: list[float] = []
        self._tasks: set[asyncio.Task[None]] = set()
        """Held, because the loop alone keeps no task from being collected."""

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            DeliveryError: no more ports, or one that is taken.
        """
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:
            self.__exit__(None, None, None)
            given = [link.port for link in self.links[len(self._servers) :] if link.port]
            words = f"No port for every device: {error.strerror}. Take fewer with --devices."
            if given:
                words = f"Nobody can listen at port {given[0]}: {error.strerror}. Choose another."
            raise DeliveryError(words) from error
        return self

    def __exit__(self, *error: object) -> None:
        """Reset every connection and end."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def now_s(self) -> float:
        """Return the time on the links [s]."""
        return time.monotonic() - self._began_s

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> None:
        for link in self.links:
            server = await asyncio.start_server(self._handler(link), _HOST, link.port)
            link.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=_STEP_S)  # sockets accepted last are still to come

    def _handler(
        self, link: DeviceLink
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._connect(link, reader, writer)

        return handle

    async def _connect(
        self, link: DeviceLink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(
                _HOST, self._server_port(), limit=_BUFFER_BYTES
            )
        except OSError:  # the server is down, and whoever asks sees that
            _reset(writer)
            return
        tasks = [
            asyncio.create_task(self._pump(reader, far_writer, link.up)),
            asyncio.create_task(self._pump(far_reader, writer, link.down, self._draw_reset())),
        ]
        own = asyncio.current_task()
        assert own is not None
        held = {own, *tasks}
        self._tasks |= held
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._tasks -= held
            for task in tasks:
                task.cancel()
            link.n_resets += _was_reset(tasks)
            ended_well = all(t.done() and not t.cancelled() and not t.exception() for t in tasks)
            for each in (writer, far_writer):
                each.close() if ended_well else _reset(each)

    def _draw_reset(self) -> int | None:
        """Return after how many bytes towards the device a connection is reset; None for never."""
        if self._rng.random() >= self._resets:
            return None
        low, high = np.log(_RESET_WITHIN)
        return int(np.exp(self._rng.uniform(low, high)))

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        shaper: Shaper,
        reset_after: int | None = None,
    ) -> None:
        """Pass bytes on until their sender has no more.

        Raises:
            _ResetError: so many bytes have passed that the connection is to be reset.
            OSError: one side is gone.
        """
        n_bytes = 0
        while data := await reader.read(shaper.quantum_bytes(self.now_s())):
            if reset_after is not None:
                data = data[: reset_after - n_bytes]
            passed_s = shaper.send(len(data), self.now_s())
            await self._wait_until(passed_s)
            writer.write(data)
            await writer.drain()
            n_bytes += len(data)
            if n_bytes == reset_after:
                raise _ResetError
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _wait_until(self, at_s: float) -> None:
        wait_s = at_s - self.now_s()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
            if len(self.late_s) < _MOST_DELAYS:
                self.late_s.append(self.now_s() - at_s)


class _ResetError(Exception):
    """A connection is to be reset here."""


def _was_reset(tasks: Sequence[asyncio.Task[None]]) -> bool:
    return any(
        t.done() and not t.cancelled() and isinstance(t.exception(), _ResetError) for t in tasks
    )


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, as a radio link that breaks does not, but its middleboxes do."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
