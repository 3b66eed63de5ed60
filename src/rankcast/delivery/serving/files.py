"""Files of the store over HTTP: blobs, metadata and manifests, as they lie there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from rankcast.delivery.blobs import checked_sha256
from rankcast.delivery.serving.access import Caller, caller_of_files
from rankcast.delivery.serving.failures import RefusalError, responses
from rankcast.delivery.serving.ranges import (
    Part,
    UnsatisfiableRangeError,
    is_unchanged,
    requested_part,
)
from rankcast.delivery.serving.settings import Serving
from rankcast.delivery.serving.short_path import IMMUTABLE, PIECE
from rankcast.errors import DeliveryError

SHORT_LIVED = "public, max-age=10, must-revalidate"
_NUMBERED = re.compile(r"[0-9]+\..*")

router = APIRouter(tags=["files"])
Known = Annotated[Caller, Depends(caller_of_files)]


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    n_bytes: int
    tag: str
    cache_control: str
    media_type: str


async def blob(request: Request, prefix: str, sha256: str, caller: Known) -> Response:
    """Return bytes that never change; `Range`, `If-Range` and `If-None-Match` are honoured."""
    del caller
    serving: Serving = request.app.state.serving
    try:
        path = serving.store.blob_path(sha256)
    except DeliveryError as error:
        raise _absent(str(error)) from error
    if prefix != sha256[:2]:
        raise _absent(f"A blob lies under the first two digits of its SHA-256, not {prefix!r}.")
    file = await _found(path, f'"{sha256}"', IMMUTABLE, "application/octet-stream")
    return _answer(request, file)


async def metadata(request: Request, name: str, caller: Known) -> Response:
    """Return signed metadata of The Update Framework."""
    del caller
    serving: Serving = request.app.state.serving
    try:
        path = serving.store.metadata_path(name)
        data = await run_in_threadpool(path.read_bytes)
    except (DeliveryError, OSError) as error:
        raise _absent("There are no such metadata.") from error
    cache_control = IMMUTABLE if _NUMBERED.fullmatch(name) else SHORT_LIVED
    tag = f'"{hashlib.sha256(data).hexdigest()}"'
    return _answer(request, _File(path, len(data), tag, cache_control, "application/json"), data)


async def manifest(request: Request, name: str, caller: Known) -> Response:
    """Return the manifest of a release, named `SHA256.ADAPTER.json`."""
    del caller
    serving: Serving = request.app.state.serving
    digest, dot, rest = name.partition(".")
    try:
        path = serving.store.manifest_path(rest.removesuffix(".json"), checked_sha256(digest))
    except DeliveryError as error:
        raise _absent(str(error)) from error
    if not dot or not rest.endswith(".json"):
        raise _absent("Manifests are named SHA256.ADAPTER.json.")
    file = await _found(path, f'"{digest}"', IMMUTABLE, "application/json")
    return _answer(request, file)


def _describe() -> None:
    """Add the routes; HEAD is a route of its own, so that each operation has its own name."""
    about: dict[str, Any] = {
        "response_class": Response,
        "responses": {
            **responses(401, 404, 416, 429),
            206: {"description": "Part of it"},
            304: {"description": "Not modified"},
        },
    }
    for path, endpoint in (
        ("/blobs/{prefix}/{sha256}", blob),
        ("/metadata/{name}", metadata),
        ("/targets/adapters/{name}", manifest),
    ):
        router.add_api_route(path, endpoint, methods=["GET"], **about)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


_describe()


async def _found(path: Path, tag: str, cache_control: str, media_type: str) -> _File:
    try:
        n_bytes = (await run_in_threadpool(path.stat)).st_size
    except OSError as error:
        raise _absent("There is no such file in the store; ask for a plan again.") from error
    return _File(path, n_bytes, tag, cache_control, media_type)


def _answer(request: Request, file: _File, data: bytes | None = None) -> Response:
    """Return a file or what is wanted of it; `data` are its bytes if they are known."""
    headers = {"ETag": file.tag, "Cache-Control": file.cache_control, "Accept-Ranges": "bytes"}
    if is_unchanged(file.tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        part = requested_part(
            file.n_bytes, file.tag, request.headers.get("range"), request.headers.get("if-range")
        )
    except UnsatisfiableRangeError as error:
        raise RefusalError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"{error} The range lies beyond.",
            {"Content-Range": f"bytes */{file.n_bytes}", "Accept-Ranges": "bytes"},
        ) from error
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.n_bytes}"
    wanted = part or Part(0, file.n_bytes)
    headers["Content-Length"] = str(wanted.stop - wanted.start)
    if request.method == "HEAD":
        return Response(None, status, headers, file.media_type)
    if data is not None:
        return Response(data[wanted.start : wanted.stop], status, headers, file.media_type)
    return StreamingResponse(_pieces(file.path, wanted), status, headers, file.media_type)


async def _pieces(path: Path, part: Part) -> AsyncIterator[bytes]:
    """Yield a part of a file; a file that became shorter ends the connection early."""
    left = part.stop - part.start
    async with await anyio.open_file(path, "rb") as opened:
        await opened.seek(part.start)
        while left > 0:
            piece = await opened.read(min(PIECE, left))
            if not piece:
                return
            left -= len(piece)
            yield piece


def _absent(message: str) -> RefusalError:
    return RefusalError(HTTPStatus.NOT_FOUND, message)
