"""Plans and reports as they happen, as server-sent events.

They come from the database, so that any server sees what happened at any other, and a reader that
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
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from rankcast.delivery.database import DatabaseError
from rankcast.delivery.registry import Event
from rankcast.delivery.serving.access import Caller, caller_of_calls
from rankcast.delivery.serving.failures import RefusalError, responses
from rankcast.delivery.serving.settings import Serving

router = APIRouter(prefix="/v1", tags=["calls"])
_AT_ONCE = 500
MOST_LAST = 5000
_Last = Annotated[
    int | None, Query(ge=0, le=MOST_LAST, description="Begin with the newest so many events.")
]
_Number = Annotated[int | None, Query(ge=0, lt=2**63, description="Begin after this event.")]
_LastSeen = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)]


class EventStream(StreamingResponse):
    """A body of server-sent events."""

    media_type = "text/event-stream"


@router.get("/events", response_class=EventStream, responses=responses(401, 403, 422, 429, 503))
async def events(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of_calls)],
    *,
    after: _Number = None,
    last: _Last = None,
    device: Annotated[str | None, Query(max_length=64, description="Only its events.")] = None,
    follow: Annotated[bool, Query(description="Whether to wait for what happens next.")] = True,
    last_event_id: _LastSeen = None,
) -> EventStream:
    """Stream plans and reports: `id` is a sequence number, `event` is `plan` or `report`.

    A device sees its own events; an operator, and everyone on an open server, those of all.
    """
    serving: Serving = request.app.state.serving
    device = _visible(caller, device)
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        after = int(last_event_id)
    if after is None:
        after = await run_in_threadpool(serving.registry.before_last, last or 0, device)
    stream = _stream(serving, after, device, follow=follow)
    return EventStream(stream, headers={"Cache-Control": "no-store"})


def _visible(caller: Caller, device: str | None) -> str | None:
    """Return whose events a caller sees: the device's that it asks for; None for all.

    Raises:
        RefusalError: 403, another device than its own.
    """
    if caller.sees_all:
        return device
    if device not in (None, caller.name):
        raise RefusalError(
            HTTPStatus.FORBIDDEN,
            f"This token is of {caller.name} and shows no events of {device}; make one with "
            f"rankcast tokens add NAME --operator.",
        )
    return caller.name


async def _stream(
    serving: Serving, after: int, device: str | None, *, follow: bool = True
) -> AsyncIterator[str]:
    settings, silent_s = serving.settings, 0.0
    yield "retry: 2000\n\n"
    while not serving.stopping.is_set():
        found: tuple[Event, ...] = ()
        with suppress(DatabaseError):  # it may come back; the reader keeps its place
            found = await run_in_threadpool(serving.registry.events_after, after, _AT_ONCE, device)
        for event in found:
            after = event.sequence
            yield as_text(event)
        if len(found) == _AT_ONCE:
            continue
        if not follow:
            return
        silent_s = 0.0 if found else silent_s + settings.poll_s
        if silent_s >= settings.heartbeat_s:
            silent_s = 0.0
            yield ": nothing new\n\n"
        with suppress(TimeoutError):
            await asyncio.wait_for(serving.stopping.wait(), settings.poll_s)


def as_text(event: Event) -> str:
    """Return an event as it goes over the wire."""
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {json.dumps(event.plain())}\n\n"
