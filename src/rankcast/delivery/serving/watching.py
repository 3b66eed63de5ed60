"""What people who watch want to know: which devices there are, and what an adapter consists of."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from rankcast.delivery.inspecting import Contents
from rankcast.delivery.manifest import Ladder
from rankcast.delivery.registry import Activity, Device, Event
from rankcast.delivery.serving.access import Caller, caller_of_calls
from rankcast.delivery.serving.bodies import (
    AdapterContents,
    AdapterName,
    DeviceBody,
    DevicesAnswer,
    LadderBody,
    ProjectionBody,
    RungBody,
)
from rankcast.delivery.serving.calls import described, no_adapter
from rankcast.delivery.serving.failures import responses
from rankcast.delivery.serving.ranges import is_unchanged
from rankcast.delivery.serving.settings import Serving

router = APIRouter(prefix="/v1", tags=["calls"])
Known = Annotated[Caller, Depends(caller_of_calls)]


def devices(request: Request, caller: Known) -> DevicesAnswer:
    """List the devices with the last plan and the last report of each.

    A device sees itself; an operator, and everyone on an open server, sees all.
    """
    registry = request.app.state.serving.registry
    sequence = registry.last_sequence()
    doing = {x.device: x for x in registry.activity(None if caller.sees_all else caller.name)}
    known = {x.name: x for x in registry.devices() if caller.sees_all or x.name == caller.name}
    names = sorted({*doing, *(x.name for x in known.values() if x.role == "device")})
    return DevicesAnswer(
        caller=caller.name,
        sees_all=caller.sees_all,
        sequence=sequence,
        devices=[_device(name, known.get(name), doing.get(name)) for name in names],
    )


def adapter(request: Request, name: AdapterName, caller: Known) -> Response:
    """Say what an adapter's ladders consist of, and which ranks each chunk brings."""
    del caller
    serving: Serving = request.app.state.serving
    found = serving.releases.current()
    if name not in found:
        raise no_adapter(name, found)
    tag = f'"{found[name].target.sha256}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if is_unchanged(tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    ladders = found[name].manifest.ladders
    answer = AdapterContents(
        **described(found[name]).model_dump(),
        ladders=[
            _ladder(ladder, contents)
            for ladder, contents in zip(ladders, serving.inspector.contents(ladders), strict=True)
        ],
    )
    return Response(answer.model_dump_json(), headers=headers, media_type="application/json")


def _describe() -> None:
    """Add the routes; HEAD is a route of its own, so that each operation has its own name."""
    about: dict[str, Any] = {"responses": responses(401, 429, 503)}
    about_one: dict[str, Any] = {
        "response_class": Response,
        "responses": {
            200: {"model": AdapterContents},
            304: {"description": "Not modified"},
            **responses(401, 404, 422, 429, 503),
        },
    }
    for path, endpoint, its in (
        ("/devices", devices, about),
        ("/adapters/{name}", adapter, about_one),
    ):
        router.add_api_route(path, endpoint, methods=["GET"], **its)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


_describe()


def _device(name: str, known: Device | None, doing: Activity | None) -> DeviceBody:
    plan, report = (None, None) if doing is None else (doing.plan, doing.report)
    seen = [event.at_s for event in (plan, report) if event is not None]
    return DeviceBody(
        name=name,
        is_revoked=known is not None and known.revoked_s is not None,
        last_s=max(seen, default=None),
        plan=_plain(plan),
        report=_plain(report),
        n_rolled_back=0 if doing is None else doing.n_rolled_back,
    )


def _plain(event: Event | None) -> dict[str, Any] | None:
    return None if event is None else event.plain()


def _ladder(ladder: Ladder, contents: Contents | None) -> LadderBody:
    rows = None if contents is None else contents.ranks.tolist()
    return LadderBody(
        header_bytes=ladder.header.n_bytes,
        projections=[]
        if contents is None
        else [
            ProjectionBody(name=p.name, kind=p.kind, layer=p.layer, rank=rank)
            for p, rank in zip(contents.projections, contents.whole, strict=True)
        ],
        rungs=[
            RungBody(
                n_bytes=rung.blob.n_bytes,
                loss=rung.loss,
                accuracy=rung.accuracy,
                ranks=None if rows is None else rows[i],
            )
            for i, rung in enumerate(ladder.rungs)
        ],
    )
