"""HTTP/1.1 that does not wait for ever for a request's head, nor for one without end.

uvicorn limits how long a connection may idle between requests, but not how long a head may take,
so that clients who send one byte a minute could keep every connection busy. With httptools, which
is many times faster than h11, it does not limit its length either.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

HEAD_TIMEOUT_S = 10.0
LARGEST_HEAD = 2**16
"""Bytes."""

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol


class PatientProtocol(Protocol):
    """uvicorn's protocol, with limits on a head's time and length."""

    _head_due: asyncio.TimerHandle | None = None
    _n_head: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take data; wait on, but no longer, if they do not complete a head."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._n_head += len(data)
            if self._n_head > LARGEST_HEAD:
                self.transport.close()
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        self._n_head = 0
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _give_up(self) -> None:
        self._head_due = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def name_of(protocol: Any = Protocol) -> str:
    """Return which parser reads requests, for what is measured."""
    return str(protocol.__module__.rpartition(".")[2].removesuffix("_impl"))
