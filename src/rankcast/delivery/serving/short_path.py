"""The shortest way from a request to a blob, for the requests that are nearly all.

A device that was let in a moment ago asks for the whole of a blob that was asked for a moment ago:
nothing of that needs the database, the disk, a thread or a router. Every other request, and every
one that would be refused, goes the ordinary way; see `files`. Both give the same answer.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from rankcast.delivery.blobs import blob_of
from rankcast.delivery.registry import Device
from rankcast.delivery.serving.settings import Serving

KEPT_BYTES = 64 * 2**20
LARGEST_KEPT = 2**20
KEPT_TOKENS = 100_000
PIECE = 2**16
"""Bytes handed on at once, so that a client who takes nothing is noticed."""
ALLOWED = "/v1/allowed"
IMMUTABLE = "public, max-age=31536000, immutable"
_BLOB = re.compile(r"/blobs/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_PLAIN = frozenset({b"range", b"if-range", b"if-none-match"})
K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """What was used lately; the one used longest ago is dropped. Threads may share it."""

    def __init__(self, room: int, size: Callable[[V], int] = lambda value: 1) -> None:  # noqa: ARG005
        self._room, self._size, self._used = room, size, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return what is kept; None for nothing."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep something."""
        with self._lock:
            self._forget(key)
            self._kept[key] = value
            self._used += self._size(value)
            while self._used > self._room:
                self._forget(next(iter(self._kept)))

    def _forget(self, key: K) -> None:
        if key in self._kept:
            self._used -= self._size(self._kept.pop(key))


@dataclass(frozen=True, slots=True)
class _Route:
    """Stands where the router would put the route, for logs and metrics."""

    path: str


class ShortPath:
    """Answers what it can at once and passes everything else on.

    Args:
        app: the ordinary way.
        serving: what the parts share.
        clock: gives seconds that never run backwards.
    """

    def __init__(
        self, app: ASGIApp, serving: Serving, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._serving, self._clock = app, serving, clock
        self._devices: Recent[bytes, tuple[Device, float]] = Recent(KEPT_TOKENS)
        self._blobs: Recent[str, bytes] = Recent(KEPT_BYTES, len)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        found = None
        if scope["type"] == "http" and scope["method"] == "GET":
            if scope["path"] == ALLOWED and await self._is_known(scope):
                scope["route"] = _Route(ALLOWED)
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body"})
                return
            found = _BLOB.fullmatch(scope["path"])
        data = None if found is None else await self._allowed(scope, found[2])
        if found is None or data is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _Route("/blobs/{prefix}/{sha256}")
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"etag", b'"%s"' % found[2].encode()),
            (b"cache-control", IMMUTABLE.encode()),
            (b"accept-ranges", b"bytes"),
            (b"content-length", b"%d" % len(data)),
            (b"content-type", b"application/octet-stream"),
        ]})  # fmt: skip
        for start in range(0, len(data), PIECE):
            piece, more = data[start : start + PIECE], start + PIECE < len(data)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _is_known(self, scope: Scope) -> bool:
        """Whether a token counts at this moment: a proxy remembers the answer, so we do not."""
        token = next((v for name, v in scope["headers"] if name == b"authorization"), None)
        device = None if token is None else await self._look_up(token)
        if device is None or self._serving.files.take(device.name) > 0:
            return False
        scope["state"]["device"] = device.name
        return True

    async def _allowed(self, scope: Scope, sha256: str) -> bytes | None:
        """Return a blob if the caller may have it now; None to let the ordinary way find out."""
        token: bytes | None = None
        for name, value in scope["headers"]:
            if name in _PLAIN:
                return None
            if name == b"authorization":
                token = value
        data = self._blobs.get(sha256)
        device = None if token is None else await self._device(token)
        if device is None:
            return None
        if data is None:
            data = await run_in_threadpool(self._read, sha256)
        if data is None or self._serving.files.take(device.name) > 0:
            return None
        scope["state"]["device"] = device.name
        return data

    async def _device(self, authorization: bytes) -> Device | None:
        """Return whose token this is, known for some seconds; None if nobody's."""
        known = self._devices.get(authorization)
        if known is not None and self._clock() < known[1]:
            return known[0]
        device = await self._look_up(authorization)
        if device is not None:
            until_s = self._clock() + self._serving.settings.keep_token_s
            self._devices.put(authorization, (device, until_s))
        return device

    async def _look_up(self, authorization: bytes) -> Device | None:
        scheme, _, token = authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await run_in_threadpool(self._serving.registry.device_of, token)

    def _read(self, sha256: str) -> bytes | None:
        """Return a blob and keep it; None for one that is absent, damaged or large."""
        try:
            with self._serving.store.blob_path(sha256).open("rb") as file:
                data: Any = file.read(LARGEST_KEPT + 1)
        except OSError:
            return None
        if len(data) > LARGEST_KEPT or blob_of(data).sha256 != sha256:
            return None
        self._blobs.put(sha256, data)
        return data
