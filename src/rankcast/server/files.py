"""Files of the store over HTTP, as they lie there: blobs, metadata and manifests.

Parts of files, and files that have not changed, follow RFC 9110, sections 13 and 14.
"""

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

from rankcast.errors import DeliveryError
from rankcast.release.manifest import checked_sha256
from rankcast.server.auth import Caller, caller_of_files
from rankcast.server.errors import RefusalError
from rankcast.server.routes import readable, responses
from rankcast.server.settings import ServerState

IMMUTABLE = "public, max-age=31536000, immutable"
SHORT_LIVED = "public, max-age=10, must-revalidate"
PIECE = 2**16
"""Bytes sent at once, so that a client who reads nothing is noticed."""
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_NUMBERED = re.compile(r"[0-9]+\..*")
_ABOUT: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        **responses(401, 404, 416, 429),
        206: {"description": "Part of it"},
        304: {"description": "Not modified"},
    },
}

router = APIRouter(tags=["files"])
Known = Annotated[Caller, Depends(caller_of_files)]


@readable(router, "/blobs/{prefix}/{sha256}", **_ABOUT)
async def blob(request: Request, prefix: str, sha256: str, caller: Known) -> Response:
    """Return bytes that never change; `Range`, `If-Range` and `If-None-Match` are honoured."""
    del caller
    server: ServerState = request.app.state.server
    try:
        path = server.store.blob_path(sha256)
    except DeliveryError as error:
        raise _absent(str(error)) from error
    if prefix != sha256[:2]:
        raise _absent(f"A blob lies under the first two digits of its SHA-256, not {prefix!r}.")
    file = await _immutable(path, sha256, "application/octet-stream")
    return _answer(request, file)


@readable(router, "/metadata/{name}", **_ABOUT)
async def metadata(request: Request, name: str, caller: Known) -> Response:
    """Return signed metadata of The Update Framework."""
    del caller
    server: ServerState = request.app.state.server
    try:
        path = server.store.metadata_path(name)
        data = await run_in_threadpool(path.read_bytes)  # at once: publishing replaces it
    except (DeliveryError, OSError) as error:
        raise _absent("There are no such metadata.") from error
    cache_control = IMMUTABLE if _NUMBERED.fullmatch(name) else SHORT_LIVED
    tag = f'"{hashlib.sha256(data).hexdigest()}"'
    file = _File(path, len(data), tag, cache_control, "application/json", data)
    return _answer(request, file)


@readable(router, "/targets/adapters/{name}", **_ABOUT)
async def manifest(request: Request, name: str, caller: Known) -> Response:
    """Return the manifest of a release, named `SHA256.ADAPTER.json`."""
    del caller
    server: ServerState = request.app.state.server
    digest, dot, rest = name.partition(".")
    try:
        path = server.store.manifest_path(rest.removesuffix(".json"), checked_sha256(digest))
    except DeliveryError as error:
        raise _absent(str(error)) from error
    if not dot or not rest.endswith(".json"):
        raise _absent("Manifests are named SHA256.ADAPTER.json.")
    return _answer(request, await _immutable(path, digest, "application/json"))


def requested_part(
    n_bytes: int, tag: str, range_header: str | None, if_range: str | None = None
) -> slice | None:
    """Return which bytes of a file are wanted; None for all of them.

    As RFC 9110 has it, a header that is no range of bytes is ignored, and so is a valid one if
    `If-Range` names other bytes. Several ranges at once are ignored too, which it allows.

    Args:
        n_bytes: of the file.
        tag: of the file, quotes included.
        range_header: the header `Range`.
        if_range: the header `If-Range`; a date never matches, for files here have tags.

    Raises:
        RefusalError: 416, no byte of the file is in the range.
    """
    if range_header is None or (if_range is not None and if_range.strip() != tag):
        return None
    match = _RANGE.fullmatch(range_header.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, n_bytes - int(suffix)), n_bytes
    else:
        start, stop = int(first), min(n_bytes, int(last) + 1 if last else n_bytes)
        if last and int(last) < int(first):
            return None
    if start >= n_bytes or stop <= start:
        raise RefusalError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"The file has {n_bytes} bytes. The range lies beyond.",
            {"Content-Range": f"bytes */{n_bytes}", "Accept-Ranges": "bytes"},
        )
    return slice(start, stop)


def is_unchanged(tag: str, if_none_match: str | None) -> bool:
    """Return whether the client has the file with this tag (`If-None-Match`, weak comparison)."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or tag in _TAG.findall(if_none_match)


@dataclass(frozen=True, slots=True)
class _File:
    """A file to answer with; `data` are its bytes if they are known."""

    path: Path
    n_bytes: int
    tag: str
    cache_control: str
    media_type: str
    data: bytes | None = None


async def _immutable(path: Path, sha256: str, media_type: str) -> _File:
    try:
        n_bytes = (await run_in_threadpool(path.stat)).st_size
    except OSError as error:
        raise _absent("There is no such file in the store; ask for a plan again.") from error
    return _File(path, n_bytes, f'"{sha256}"', IMMUTABLE, media_type)


def _answer(request: Request, file: _File) -> Response:
    """Return a file, or the part of it that is wanted."""
    headers = {"ETag": file.tag, "Cache-Control": file.cache_control, "Accept-Ranges": "bytes"}
    if is_unchanged(file.tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    part = requested_part(
        file.n_bytes, file.tag, request.headers.get("range"), request.headers.get("if-range")
    )
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.n_bytes}"
    wanted = part or slice(0, file.n_bytes)
    headers["Content-Length"] = str(wanted.stop - wanted.start)
    if request.method == "HEAD":
        return Response(None, status, headers, file.media_type)
    if file.data is not None:
        return Response(file.data[wanted], status, headers, file.media_type)
    return StreamingResponse(_pieces(file.path, wanted), status, headers, file.media_type)


async def _pieces(path: Path, part: slice) -> AsyncIterator[bytes]:
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
