"""Is the server alive, can it serve, and what did it count: for machines, without a token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from rankcast.delivery.serving.failures import RefusalError, responses
from rankcast.delivery.serving.settings import Serving

router = APIRouter(tags=["health"])


async def healthz() -> PlainTextResponse:
    """Say that the process answers."""
    return PlainTextResponse("ok\n")


def readyz(request: Request) -> PlainTextResponse:
    """Say whether store and database can be read; 503 if not, or while the server ends."""
    serving: Serving = request.app.state.serving
    if serving.stopping.is_set():
        raise RefusalError(503, "The server is ending.")
    serving.registry.check()
    n_adapters = len(serving.releases.current())
    return PlainTextResponse(f"ok, {n_adapters} adapters\n")


def metrics(request: Request) -> Response:
    """Return counters in Prometheus' text format."""
    serving: Serving = request.app.state.serving
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _describe() -> None:
    about: dict[str, Any] = {"response_class": PlainTextResponse}
    for path, endpoint, statuses in (
        ("/healthz", healthz, ()),
        ("/readyz", readyz, (503,)),
        ("/metrics", metrics, (503,)),
    ):
        router.add_api_route(path, endpoint, responses=responses(*statuses), **about)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


_describe()
