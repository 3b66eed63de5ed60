"""The dashboard: a page that holds no data and asks the API for it.

Its files come from the package and load nothing from elsewhere, which the policy sent with them
enforces: what a device says can neither run as a script nor send anything away.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

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
_SCRIPT = "text/javascript; charset=utf-8"
"""Browsers run nothing else; systems differ in the type that they have for `.js`."""

router = APIRouter(include_in_schema=False)
_FILES = StaticFiles(packages=[("rankcast.server", "dashboard")])


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Return the dashboard."""
    return await asset(request, "index.html")


@router.api_route("/dashboard/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    """Return a file of the dashboard."""
    response = await _FILES.get_response(name, request.scope)
    response.headers.update(HEADERS)
    if name.endswith(".js"):
        response.headers["Content-Type"] = _SCRIPT
    return response
