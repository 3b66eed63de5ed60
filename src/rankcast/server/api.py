"""The calls of devices and dashboards: plans, reports, adapters, devices."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from itertools import takewhile
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from rankcast.codec.header import same_base
from rankcast.errors import InfeasibleDeadlineError, LinkError, nearest
from rankcast.link.rate_models import rate_model
from rankcast.release.manifest import File, Manifest
from rankcast.release.plan import FetchPlan, gains, plan_fetch
from rankcast.release.store import Release
from rankcast.server.auth import Caller, caller_of_calls, caller_of_files
from rankcast.server.cell_shares import steps_of
from rankcast.server.cells import cell_of
from rankcast.server.contents import Contents
from rankcast.server.errors import RefusalError
from rankcast.server.files import is_unchanged
from rankcast.server.registry import Activity, Device, Event
from rankcast.server.routes import readable, responses
from rankcast.server.schemas import (
    AdapterBody,
    AdapterContents,
    AdapterName,
    AdaptersAnswer,
    AssignedAnswer,
    BaseModelBody,
    BlobBody,
    CellBody,
    ChunkBody,
    DeviceBody,
    DevicesAnswer,
    FileBody,
    MeasuredLink,
    PlanAnswer,
    PlanRequest,
    ProjectionBody,
    RadioLink,
    ReportRequest,
)
from rankcast.server.settings import ServerState, published_of

router = APIRouter(prefix="/v1", tags=["calls"])
_NOTHING: list[int] = []
Known = Annotated[Caller, Depends(caller_of_calls)]


@router.post("/plan", responses=responses(401, 404, 408, 409, 413, 415, 422, 429, 503))
def plan(
    request: Request,
    wanted: PlanRequest,
    caller: Known,
    prefer: Annotated[
        str | None, Header(description="`steps` if the device asks again between steps.")
    ] = None,
) -> PlanAnswer:
    """Say which blobs a device should fetch now.

    The prefix of lowest expected loss whose missing blobs arrive before the deadline; in a cell,
    what the devices that sync there leave room for. It is advice: a device fetches only what a
    signed manifest names.
    """
    began_s = time.perf_counter()
    server: ServerState = request.app.state.server
    manifest = _manifest_for(server, wanted)
    budget_bits = budget_bits_of(wanted.link, wanted.deadline_s)
    try:
        best, cell = _planned(server, caller, wanted, manifest, comes_again=prefer == "steps")
    except InfeasibleDeadlineError:
        server.metrics.infeasible.labels(manifest.name).inc()
        raise
    finally:
        server.metrics.plan_s.observe(time.perf_counter() - began_s)
    answer = PlanAnswer(
        adapter=manifest.name,
        version=manifest.version,
        ladder=best.file_index,
        n_rungs=best.n_chunks,
        blobs=[BlobBody(sha256=b.sha256, n_bytes=b.n_bytes) for b in best.missing],
        bits=best.bits,
        loss=best.loss,
        accuracy=best.accuracy,
        planner=best.planner,
        cell=cell,
    )
    is_event = server.looks.plan(caller.name, _plan_event(wanted, answer, budget_bits, manifest))
    if not is_event:
        server.metrics.looks.inc()
    return answer


@router.post(
    "/report",
    status_code=HTTPStatus.NO_CONTENT,
    responses=responses(401, 408, 413, 415, 422, 429, 503),
)
def report(request: Request, done: ReportRequest, caller: Known) -> Response:
    """Keep what a device did."""
    server: ServerState = request.app.state.server
    server.looks.report(caller.name, done.model_dump(mode="json"))
    server.cells.release(caller.name, done.adapter)
    now_s = server.settings.now_s()
    failed = server.rollouts.report(
        caller.name, done.adapter, now_s, version=done.version, event=done.event,
        message=done.message,
    )  # fmt: skip
    if failed is not None:
        server.rollouts.look(failed, now_s, server.published(done.adapter))
    server.metrics.reports.labels(done.event).inc()
    return Response(status_code=HTTPStatus.NO_CONTENT)


@readable(router, "/adapters", responses=responses(401, 429, 503))
def adapters(request: Request, caller: Known) -> AdaptersAnswer:
    """List the adapters that are published."""
    del caller
    server: ServerState = request.app.state.server
    releases = server.releases.current()
    return AdaptersAnswer(adapters=[_adapter_body(releases[name]) for name in sorted(releases)])


@readable(
    router,
    "/adapters/{name}",
    response_class=Response,
    responses={
        200: {"model": AdapterContents},
        304: {"description": "Not modified"},
        **responses(401, 404, 422, 429, 503),
    },
)
def adapter(request: Request, name: AdapterName, caller: Known) -> Response:
    """Say what the files of an adapter consist of, and which ranks each chunk brings."""
    del caller
    server: ServerState = request.app.state.server
    releases = server.releases.current()
    if name not in releases:
        raise _no_adapter(name, releases)
    release = releases[name]
    tag = f'"{release.target.sha256}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if is_unchanged(tag, request.headers.get("if-none-match")):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    files = [_file_body(file, server.contents_of(file)) for file in release.manifest.files]
    answer = AdapterContents(**_adapter_body(release).model_dump(), ladders=files)
    return Response(answer.model_dump_json(), headers=headers, media_type="application/json")


@readable(router, "/adapters/{name}/assigned", responses=responses(401, 404, 422, 429, 503))
def assigned(
    request: Request,
    name: AdapterName,
    caller: Known,
    *,
    active: Annotated[int | None, Query(ge=1, lt=2**53, description="Its version now.")] = None,
    rejected: Annotated[
        list[Annotated[int, Query(ge=1, lt=2**53)]],
        Query(max_length=64, description="Versions that failed their proof on it."),
    ] = _NOTHING,
) -> AssignedAnswer:
    """Say which version of an adapter a device is to have: the newest, if no rollout says else.

    It is advice: a device takes only what the signed release names.
    """
    server: ServerState = request.app.state.server
    releases = server.releases.current()
    if name not in releases:
        raise _no_adapter(name, releases)
    told = server.rollouts.assign(
        caller.name, name, server.settings.now_s(), published_of(releases[name]), active=active,
        rejected=frozenset(rejected),
    )  # fmt: skip
    return AssignedAnswer(
        adapter=name,
        version=told.version,
        holds=told.holds,
        rollout=told.rollout,
        reason=told.reason,
    )


@readable(router, "/devices", responses=responses(401, 429, 503))
def devices(request: Request, caller: Known) -> DevicesAnswer:
    """List the devices with the last plan and the last report of each.

    A device sees itself; an operator, and everyone on a server without tokens, sees all.
    """
    server: ServerState = request.app.state.server
    registry, own = server.registry, None if caller.sees_all else caller.name
    sequence = registry.last_sequence()
    active, seen_s = {x.device: x for x in registry.activity(own)}, server.looks.last_seen_s(own)
    known = {x.name: x for x in registry.devices() if caller.sees_all or x.name == caller.name}
    names = sorted({*active, *seen_s, *(x.name for x in known.values() if x.role == "device")})
    return DevicesAnswer(
        caller=caller.name,
        sees_all=caller.sees_all,
        sequence=sequence,
        devices=[
            _device_body(name, known.get(name), active.get(name), seen_s.get(name))
            for name in names
        ],
    )


@router.get("/allowed", status_code=HTTPStatus.NO_CONTENT, responses=responses(401, 429, 503))
def allowed(caller: Annotated[Caller, Depends(caller_of_files)]) -> Response:
    """Say whether a device may fetch files: for a proxy that hands them out itself."""
    del caller
    return Response(status_code=HTTPStatus.NO_CONTENT)


def budget_bits_of(link: RadioLink | MeasuredLink, deadline_s: float) -> float:
    """Return the bits that a link carries before a deadline; 0 if it carries nothing.

    Raises:
        ConfigError: a rate model that does not exist, or its parameters missing or unknown.
        LinkError: a link outside physics.
    """
    if isinstance(link, MeasuredLink):
        return link.throughput_bps * deadline_s
    model = rate_model(link.rate_model, link.bandwidth_hz, **link.rate_params)
    efficiency = float(model.spectral_efficiency(np.array(link.snr_db)))
    if not math.isfinite(efficiency):
        raise LinkError(
            f"{link.rate_model} with {link.rate_params} has no rate at {link.snr_db:g} dB."
        )
    return efficiency * link.bandwidth_hz * deadline_s


def _planned(
    server: ServerState,
    caller: Caller,
    wanted: PlanRequest,
    manifest: Manifest,
    *,
    comes_again: bool,
) -> tuple[FetchPlan, CellBody | None]:
    """Return the best prefix, and what the device's cell has to do with it.

    Raises:
        InfeasibleDeadlineError: its own link carries not even the first chunk of any file.
        RefusalError: 429, its cell has no room now, and it asks again or has no prefix yet.
    """
    held, budget_bits = frozenset(wanted.held), budget_bits_of(wanted.link, wanted.deadline_s)
    rate_bps = budget_bits / wanted.deadline_s
    alone = plan_fetch(manifest, budget_bits, held, rate_bps)
    cell = server.cells.cells.get(cell_of(caller.groups) or "")
    if cell is None:
        return alone, None
    if not alone.missing:
        server.cells.release(caller.name, manifest.name)
        return alone, None
    seconds_of_bit = cell.seconds_of_bit(rate_bps)
    bits, wait_s, told = server.cells.share(
        cell.name, (caller.name, manifest.name),
        steps_of(gains(manifest, held, rate_bps), seconds_of_bit, budget_bits),
        wanted.deadline_s, server.settings.now_s(), comes_again=comes_again,
    )  # fmt: skip
    if bits or not comes_again:
        with suppress(InfeasibleDeadlineError):  # it has no prefix, and none has room
            return plan_fetch(manifest, bits, held, rate_bps), told
    server.metrics.cell_refusals.labels(cell.name).inc()
    headers = {"Retry-After": str(math.ceil(wait_s)), "Rankcast-Cell": cell.name}
    raise RefusalError(HTTPStatus.TOO_MANY_REQUESTS, told.reason, headers)


def _manifest_for(server: ServerState, wanted: PlanRequest) -> Manifest:
    """Return the release that a plan is for: the newest, or an older one that it lists.

    Raises:
        RefusalError: 404 or 409.
    """
    releases = server.releases.current()
    if wanted.adapter not in releases:
        raise _no_adapter(wanted.adapter, releases)
    manifest = releases[wanted.adapter].manifest
    if wanted.version not in (None, manifest.version):
        listed = {older.version: older.blob for older in manifest.older}
        if wanted.version not in listed:
            versions = ", ".join(map(str, sorted([manifest.version, *listed])))
            raise RefusalError(
                HTTPStatus.NOT_FOUND,
                f"The signed release of {wanted.adapter} names versions {versions}, not "
                f"{wanted.version}.",
            )
        manifest = server.older_manifest(listed[wanted.version])
    base = manifest.base
    if not same_base(base.fingerprint, wanted.base_fingerprint):
        raise RefusalError(
            HTTPStatus.CONFLICT,
            f"Adapter {wanted.adapter!r} is for {base.name} (fingerprint {base.fingerprint}), not "
            f"for a model with fingerprint {wanted.base_fingerprint}.",
        )
    return manifest


def _no_adapter(name: str, published: Iterable[str]) -> RefusalError:
    return RefusalError(
        HTTPStatus.NOT_FOUND,
        f"There is no adapter {name!r}{nearest(name, published)}. GET /v1/adapters lists them.",
    )


def _plan_event(
    wanted: PlanRequest, answer: PlanAnswer, budget_bits: float, manifest: Manifest
) -> dict[str, object]:
    """Return what the dashboard shows of a plan: everything but the lists of blobs."""
    held = set(wanted.held)
    blobs = manifest.files[answer.ladder].blobs()
    n_from_first = sum(1 for _ in takewhile(lambda blob: blob.sha256 in held, blobs))
    return {
        **answer.model_dump(exclude={"blobs"} if answer.cell else {"blobs", "cell"}),
        "n_blobs": len(answer.blobs),
        "n_held": len(wanted.held),
        "n_held_rungs": max(0, n_from_first - 1),  # the header is no chunk
        "link": wanted.link.model_dump(),
        "deadline_s": wanted.deadline_s,
        "budget_bits": budget_bits,
    }


def _adapter_body(release: Release) -> AdapterBody:
    manifest = release.manifest
    assert manifest.base.fingerprint is not None
    return AdapterBody(
        name=manifest.name,
        version=manifest.version,
        base=BaseModelBody(name=manifest.base.name, fingerprint=manifest.base.fingerprint),
        n_rungs=[len(file.chunks) for file in manifest.files],
        n_bytes=sum(blob.n_bytes for blob in manifest.blobs),
        manifest=f"/targets/adapters/{release.target.sha256}.{manifest.name}.json",
    )


def _file_body(file: File, contents: Contents | None) -> FileBody:
    ranks = None if contents is None else contents.ranks.tolist()
    projections = (
        []
        if contents is None
        else [
            ProjectionBody(name=p.name, kind=p.kind, layer=p.layer, rank=rank)
            for p, rank in zip(contents.projections, contents.packed_ranks, strict=True)
        ]
    )
    chunks = [
        ChunkBody(
            n_bytes=chunk.blob.n_bytes,
            loss=chunk.loss,
            accuracy=chunk.accuracy,
            ranks=None if ranks is None else ranks[number],
        )
        for number, chunk in enumerate(file.chunks)
    ]
    return FileBody(header_bytes=file.header.n_bytes, projections=projections, rungs=chunks)


def _device_body(
    name: str, known: Device | None, active: Activity | None, seen_s: float | None
) -> DeviceBody:
    plan, report = (None, None) if active is None else (active.plan, active.report)
    times_s = [event.at_s for event in (plan, report) if event is not None]
    times_s += [] if seen_s is None else [seen_s]
    return DeviceBody(
        name=name,
        is_revoked=known is not None and known.revoked_s is not None,
        last_s=max(times_s, default=None),
        plan=_plain(plan),
        report=_plain(report),
        n_rolled_back=0 if active is None else active.n_rolled_back,
    )


def _plain(event: Event | None) -> dict[str, Any] | None:
    return None if event is None else event.plain()
