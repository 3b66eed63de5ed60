"""A fast path from a request to a blob, for the requests that are nearly all.

A device that was let in a moment ago asks for the whole of a blob that was asked for a moment ago:
nothing of that needs the database, the disk, a thread or a router. Every other request, and every
one that would be refused, goes the ordinary way; see `files`. Both give the same answer.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from cachetools import LRUCache
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from rankcast.release.manifest import blob_of
from rankcast.server.files import IMMUTABLE, PIECE
from rankcast.server.registry import Device
from rankcast.server.settings import ServerState

KEPT_BYTES = 64 * 2**20
LARGEST_KEPT = 2**20
KEPT_TOKENS = 100_000
ALLOWED = "/v1/allowed"
_BLOB = re.compile(r"/blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_CONDITIONS = frozenset({b"range", b"if-range", b"if-none-match"})


@dataclass(frozen=True, slots=True)
class _Route:
    """Stands where the router would put the route, for logs and metrics."""

    path: str


class FastPath:
    """Answers what it can at once and passes everything else on.

    The caches are used by the event loop alone, so they need no lock.

    Args:
        app: the ordinary way.
        server: what the parts share.
    """

    def __init__(self, app: ASGIApp, server: ServerState) -> None:
        self._app, self._server = app, server
        self._devices: LRUCache[bytes, tuple[Device, float]] = LRUCache(KEPT_TOKENS)
        self._blobs: LRUCache[str, bytes] = LRUCache(KEPT_BYTES, len)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        match = None
        if scope["type"] == "http" and scope["method"] == "GET":
            if scope["path"] == ALLOWED and await self._is_known(scope):
                scope["route"] = _Route(ALLOWED)
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body"})
                return
            match = _BLOB.fullmatch(scope["path"])
        data = None if match is None else await self._allowed(scope, match[2])
        if match is None or data is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _Route("/blobs/{prefix}/{sha256}")
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"etag", b'"%s"' % match[2].encode()),
            (b"cache-control", IMMUTABLE.encode()),
            (b"accept-ranges", b"bytes"),
            (b"content-length", b"%d" % len(data)),
            (b"content-type", b"application/octet-stream"),
        ]})  # fmt: skip
        for start in range(0, len(data), PIECE):
            piece, more = data[start : start + PIECE], start + PIECE < len(data)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _is_known(self, scope: Scope) -> bool:
        """Return whether a token counts now; a proxy remembers the answer, so nothing is here."""
        token = next((v for name, v in scope["headers"] if name == b"authorization"), None)
        device = None if token is None else await self._look_up(token)
        if device is None or self._server.files.take(device.name) > 0:
            return False
        scope["state"]["device"] = device.name
        return True

    async def _allowed(self, scope: Scope, sha256: str) -> bytes | None:
        """Return a blob if the caller may have it now; None to let the ordinary way decide."""
        token: bytes | None = None
        for name, value in scope["headers"]:
            if name in _CONDITIONS:
                return None
            if name == b"authorization":
                token = value
        device = None if token is None else await self._device(token)
        if device is None:
            return None
        data = self._blobs.get(sha256)
        if data is None:
            data = await run_in_threadpool(self._read, sha256)
            if data is not None:
                self._blobs[sha256] = data
        if data is None or self._server.files.take(device.name) > 0:
            return None
        scope["state"]["device"] = device.name
        return data

    async def _device(self, authorization: bytes) -> Device | None:
        """Return whose token this is, remembered for some seconds; None if nobody's."""
        known = self._devices.get(authorization)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        device = await self._look_up(authorization)
        if device is not None:
            until_s = time.monotonic() + self._server.settings.keep_token_s
            self._devices[authorization] = (device, until_s)
        return device

    async def _look_up(self, authorization: bytes) -> Device | None:
        scheme, _, token = authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await run_in_threadpool(self._server.registry.device_of, token)

    def _read(self, sha256: str) -> bytes | None:
        """Return a blob to keep; None for one that is absent, damaged or large."""
        try:
            with self._server.store.blob_path(sha256).open("rb") as file:
                data = file.read(LARGEST_KEPT + 1)
        except OSError:
            return None
        if len(data) > LARGEST_KEPT or blob_of(data).sha256 != sha256:
            return None
        return data
