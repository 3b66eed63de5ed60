"""The dashboard's files: a page that holds no data and asks the API for them.

They come from the package and nothing in them comes from elsewhere, which the policy sent with
them enforces: a device's words can neither run as a script nor send anything away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from rankcast.delivery.serving.failures import RefusalError
from rankcast.delivery.serving.ranges import is_unchanged

router = APIRouter(include_in_schema=False)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "img")),
        *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # ask whether it changed; the answer is short
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    data: bytes
    tag: str
    media_type: str


def page(request: Request) -> Response:
    """Return the dashboard."""
    return asset(request, "index.html")


def asset(request: Request, name: str) -> Response:
    """Return a file of the dashboard."""
    found = _assets().get(name)
    if found is None:
        raise RefusalError(HTTPStatus.NOT_FOUND, "The dashboard has no such file.")
    headers = {**HEADERS, "ETag": found.tag}
    if is_unchanged(found.tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(found.data, headers=headers, media_type=found.media_type)


for _path, _endpoint in (("/", page), ("/dashboard/{name}", asset)):
    router.add_api_route(_path, _endpoint, methods=["GET", "HEAD"])


@lru_cache(maxsize=1)
def _assets() -> dict[str, _Asset]:
    """Read the files once; together they have some tens of kilobytes."""
    found = {}
    for entry in (files("rankcast.delivery.serving") / "dashboard").iterdir():
        media_type = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if media_type is not None:
            data = entry.read_bytes()
            found[entry.name] = _Asset(data, f'"{hashlib.sha256(data).hexdigest()}"', media_type)
    return found
