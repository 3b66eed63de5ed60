"""The app that tells devices what to fetch, and hands it out.

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

from rankcast.release.store import Store
from rankcast.server import api, events, files, health, pages, rollout_api
from rankcast.server.errors import handle_errors
from rankcast.server.fast_path import FastPath
from rankcast.server.middleware import BodyLimit, RequestMonitor
from rankcast.server.registry import DatabaseError
from rankcast.server.settings import ServerSettings, ServerState
from rankcast.version import __version__

_DELETE_EVERY_S = 3600.0


def create_app(store: Store, settings: ServerSettings | None = None) -> FastAPI:
    """Return the app over a store.

    Raises:
        ConfigError: a database that cannot be.
        DeliveryError: it does not answer.
    """
    settings = settings or ServerSettings()
    server = ServerState.of(store, settings)
    app = FastAPI(
        title="rankcast",
        version=__version__,
        description="Which chunks of an adapter a device should fetch now, and the chunks.",
        lifespan=_lifespan,
        docs_url=None,  # its pages load scripts from elsewhere; /openapi.json stays
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.server = server
    for part in (api, rollout_api, events, files, health, pages):
        app.include_router(part.router)
    handle_errors(app)
    app.add_middleware(BodyLimit, largest=settings.largest_body, timeout_s=settings.body_timeout_s)
    app.add_middleware(FastPath, server=server)
    app.add_middleware(RequestMonitor, metrics=server.metrics, stall_s=settings.stall_s)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    server: ServerState = app.state.server
    deleting = asyncio.create_task(_delete_old_events(server))
    writing = asyncio.create_task(_write_looks(server))
    try:
        with _stop_on_signal(server.stopping):
            yield
    finally:
        server.stopping.set()
        await asyncio.gather(deleting, writing)  # nothing may write once the registry is closed
        server.registry.close()


async def _delete_old_events(server: ServerState) -> None:
    while not server.stopping.is_set():
        with suppress(DatabaseError):
            await run_in_threadpool(server.registry.delete_events, server.settings.keep_events_s)
            await run_in_threadpool(server.looks.delete, server.settings.keep_events_s)
            await run_in_threadpool(server.calls.delete_full)
        with suppress(TimeoutError):
            await asyncio.wait_for(server.stopping.wait(), _DELETE_EVERY_S)


async def _write_looks(server: ServerState) -> None:
    is_last = False
    while not is_last:
        with suppress(TimeoutError):
            await asyncio.wait_for(server.stopping.wait(), server.settings.write_looks_s)
        is_last = server.stopping.is_set()
        with suppress(DatabaseError):  # they stay gathered
            await run_in_threadpool(server.looks.write)


@contextmanager
def _stop_on_signal(stopping: asyncio.Event) -> Iterator[None]:
    """Set an event at SIGINT or SIGTERM, then call the handler that was there.

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
