"""Around every request: a line in the log, counters, and limits on time and on bodies."""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankcast.server.errors import error_answer
from rankcast.server.metrics import Metrics

_LOG = logging.getLogger("rankcast.serve")
_ASKED_BY_MACHINES = ("/healthz", "/readyz", "/metrics")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")


class RequestMonitor:
    """Logs and counts requests, ends answers that nobody reads, and gives HEAD no body.

    Args:
        app: what answers.
        metrics: counters.
        stall_s: in which a client has to take what is sent [s].
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, stall_s: float) -> None:
        self._app, self._metrics, self._stall_s = app, metrics, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status, n_bytes, stalled = time.perf_counter(), 500, 0, False
        is_head = scope["method"] == "HEAD"

        async def send_on(message: Message) -> None:
            nonlocal status, n_bytes, stalled
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                if is_head:
                    message = {**message, "body": b""}
                n_bytes += len(message.get("body", b""))
            try:
                async with asyncio.timeout(self._stall_s):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        scope.setdefault("state", {})
        try:
            await self._app(scope, receive, send_on)
        except Exception:
            if not stalled:
                raise
            _LOG.warning("A client read nothing for %g s.", self._stall_s)
        finally:
            self._record(scope, status, n_bytes, 1e3 * (time.perf_counter() - began_s))

    def _record(self, scope: Scope, status: int, n_bytes: int, ms: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.sent_bytes.labels(route).inc(n_bytes)
        level = logging.DEBUG if route in _ASKED_BY_MACHINES else logging.INFO
        _LOG.log(level, "request", extra={"fields": {
            "device": scope["state"].get("device"), "method": method, "route": route,
            "status": status, "ms": round(ms, 3), "bytes": n_bytes,
        }})  # fmt: skip


class BodyLimit:
    """Reads a body before anything else sees it: not too long, and not too slowly.

    Args:
        app: what answers.
        largest: bytes of a body.
        timeout_s: in which it has to arrive [s].
    """

    def __init__(self, app: ASGIApp, largest: int, timeout_s: float) -> None:
        self._app, self._largest, self._timeout_s = app, largest, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or answer 413 or 408."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            message = f"The body did not arrive within {self._timeout_s:g} s."
            answer = error_answer(HTTPStatus.REQUEST_TIMEOUT, "DeliveryError", message, _CLOSE)
            await answer(scope, receive, send)
            return
        if body is None:
            message = f"A body may have {self._largest:,} bytes; name fewer held blobs."
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            await error_answer(status, "DeliveryError", message, _CLOSE)(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None if it is too long, which its length may tell beforehand."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._largest:
            return None
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._largest:
                return None
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(body)


_CLOSE = {"Connection": "close"}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives a body that was read before."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
