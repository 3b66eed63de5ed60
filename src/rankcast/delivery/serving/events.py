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
_Number = Annotated[int | None, Query(ge=0, lt=2**63, description="Begin after this event.")]
_LastSeen = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20)]


class EventStream(StreamingResponse):
    """A body of server-sent events."""

    media_type = "text/event-stream"


@router.get("/events", response_class=EventStream, responses=responses(401, 403, 422, 429, 503))
async def events(
    request: Request,
    caller: Annotated[Caller, Depends(caller_of_calls)],
    after: _Number = None,
    device: Annotated[str | None, Query(max_length=64, description="Only its events.")] = None,
    last_event_id: _LastSeen = None,
) -> EventStream:
    """Stream plans and reports: `id` is a sequence number, `event` is `plan` or `report`.

    A device sees its own events; an operator, and everyone on an open server, those of all.
    """
    serving: Serving = request.app.state.serving
    if not caller.sees_all:
        if device not in (None, caller.name):
            raise RefusalError(
                HTTPStatus.FORBIDDEN,
                f"This token is of {caller.name} and shows no events of {device}; make one with "
                f"rankcast tokens add NAME --operator.",
            )
        device = caller.name
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        after = int(last_event_id)
    if after is None:
        after = await run_in_threadpool(serving.registry.last_sequence)
    return EventStream(_stream(serving, after, device), headers={"Cache-Control": "no-store"})


async def _stream(serving: Serving, after: int, device: str | None) -> AsyncIterator[str]:
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
        silent_s = 0.0 if found else silent_s + settings.poll_s
        if silent_s >= settings.heartbeat_s:
            silent_s = 0.0
            yield ": nothing new\n\n"
        with suppress(TimeoutError):
            await asyncio.wait_for(serving.stopping.wait(), settings.poll_s)


def as_text(event: Event) -> str:
    """Return an event as it goes over the wire."""
    data = {"sequence": event.sequence, "at_s": event.at_s, "device": event.device, **event.body}
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {json.dumps(data)}\n\n"
