"""Health, readiness and metrics, for machines and without a token."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from rankcast.server.errors import RefusalError
from rankcast.server.routes import readable, responses
from rankcast.server.settings import ServerState

router = APIRouter(tags=["health"], default_response_class=PlainTextResponse)


@readable(router, "/healthz")
async def healthz() -> PlainTextResponse:
    """Say that the process answers."""
    return PlainTextResponse("ok\n")


@readable(router, "/readyz", responses=responses(503))
def readyz(request: Request) -> PlainTextResponse:
    """Say whether store and database can be read; 503 if not, or while the server stops."""
    server: ServerState = request.app.state.server
    if server.stopping.is_set():
        raise RefusalError(503, "The server is stopping.")
    server.registry.check()
    return PlainTextResponse(f"ok, {len(server.releases.current())} adapters\n")


@readable(router, "/metrics", responses=responses(503))
def metrics(request: Request) -> Response:
    """Return counters in Prometheus' text format."""
    server: ServerState = request.app.state.server
    media_type = "text/plain; version=0.0.4; charset=utf-8"
    return Response(server.metrics.text(), media_type=media_type)
