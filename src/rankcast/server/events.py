"""Plans and reports as they happen, as server-sent events.

They come from the database, so that any server sends what happened at any other, and a reader that
reconnects anywhere with `Last-Event-ID` misses nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from rankcast.server.auth import Caller, caller_of_calls
from rankcast.server.errors import RefusalError
from rankcast.server.registry import DatabaseError, Event
from rankcast.server.routes import responses
from rankcast.server.settings import ServerState

MOST_LAST = 5000
_AT_ONCE = 500
_RETRY_MS = 2000

router = APIRouter(prefix="/v1", tags=["calls"])


def selected(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of_calls)],
    *,
    after: Annotated[
        int | None, Query(ge=0, lt=2**63, description="Begin after this event.")
    ] = None,
    last: Annotated[
        int, Query(ge=0, le=MOST_LAST, description="Begin with the newest so many events.")
    ] = 0,
    device: Annotated[str | None, Query(max_length=64, description="Only its events.")] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)] = None,
) -> tuple[int, str | None]:
    """Return after which event to begin, and whose events a caller may see; None for all.

    Raises:
        RefusalError: 403, another device than its own.
    """
    if not caller.sees_all:
        if device not in (None, caller.name):
            raise RefusalError(
                HTTPStatus.FORBIDDEN,
                f"This token is of {caller.name} and shows no events of {device}; make one with "
                f"rankcast devices add NAME --operator.",
            )
        device = caller.name
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        after = int(last_event_id)
    if after is not None:
        return after, device
    server: ServerState = request.app.state.server
    return server.registry.before_last(last, device), device


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses=responses(401, 403, 422, 429, 503),
)
async def events(
    request: Request,
    beginning: Annotated[tuple[int, str | None], Depends(selected)],
    *,
    follow: Annotated[bool, Query(description="Whether to wait for what happens next.")] = True,
) -> AsyncIterator[ServerSentEvent]:
    """Stream plans and reports: `id` is a sequence number, `event` is `plan` or `report`.

    A device sees its own; an operator, and everyone on a server without tokens, sees all.
    """
    server: ServerState = request.app.state.server
    after, device = beginning
    yield ServerSentEvent(retry=_RETRY_MS)
    while not server.stopping.is_set():
        rows: tuple[Event, ...] = ()
        with suppress(DatabaseError):  # it may come back; the reader keeps its place
            rows = await run_in_threadpool(server.registry.events_after, after, _AT_ONCE, device)
        for event in rows:
            after = event.sequence
            yield ServerSentEvent(
                id=str(after), event=event.kind, raw_data=json.dumps(event.plain())
            )
        if len(rows) == _AT_ONCE:
            continue
        if not follow:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(server.stopping.wait(), server.settings.poll_s)
