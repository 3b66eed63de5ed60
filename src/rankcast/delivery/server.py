"""The server that tells devices what to fetch, and hands it out.

It holds no keys and vouches for nothing: what it hands out is signed, what it says is advice. It
keeps nothing in memory that another server would need, so that any number may share a store and a
database behind a load balancer.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from rankcast import __version__
from rankcast.delivery.database import DatabaseError
from rankcast.delivery.serving import calls, events, files, health, pages, watching
from rankcast.delivery.serving.failures import answer_failures
from rankcast.delivery.serving.middleware import BodyLimit, Observed
from rankcast.delivery.serving.settings import ServerSettings, Serving
from rankcast.delivery.serving.short_path import ShortPath
from rankcast.delivery.store import Store

_FORGET_EVERY_S = 3600.0


def create_app(store: Store, settings: ServerSettings | None = None) -> FastAPI:
    """Return the app over a store.

    Raises:
        ConfigError: a database that cannot be.
        DeliveryError: it does not answer.
    """
    settings = settings or ServerSettings()
    serving = Serving.of(store, settings)
    app = FastAPI(
        title="rankcast",
        version=__version__,
        description="Which chunks of an adapter a device should fetch now, and the chunks.",
        lifespan=_lifespan,
        docs_url=None,  # its pages load scripts from elsewhere; /openapi.json stays
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.serving = serving
    for part in (calls, watching, events, files, health, pages):
        app.include_router(part.router)
    answer_failures(app)
    app.add_middleware(BodyLimit, largest=settings.largest_body, timeout_s=settings.body_timeout_s)
    app.add_middleware(ShortPath, serving=serving)
    app.add_middleware(Observed, metrics=serving.metrics, stall_s=settings.stall_s)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    serving: Serving = app.state.serving
    forgetting = asyncio.create_task(_forget(serving))
    try:
        with _told_to_end(serving.stopping):
            yield
    finally:
        serving.stopping.set()
        forgetting.cancel()
        serving.registry.close()


async def _forget(serving: Serving) -> None:
    """Delete old events from time to time."""
    while True:
        with suppress(DatabaseError):
            await run_in_threadpool(serving.registry.forget, serving.settings.keep_events_s)
        await asyncio.sleep(_FORGET_EVERY_S)


@contextmanager
def _told_to_end(stopping: asyncio.Event) -> Iterator[None]:
    """Set an event at SIGINT or SIGTERM, then do what would have been done.

    A server waits for its answers to end, and streams of events end only when they are told to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread, which is someone else's
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(stopping.set)
        if callable(before[number]):
            before[number](number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
