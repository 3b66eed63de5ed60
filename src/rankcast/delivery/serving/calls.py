"""Plans, reports and the list of adapters."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from http import HTTPStatus
from itertools import takewhile
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from rankcast.delivery.manifest import Manifest
from rankcast.delivery.planning import plan_fetch
from rankcast.delivery.releases import Release
from rankcast.delivery.serving.access import Caller, caller_of_calls, caller_of_files
from rankcast.delivery.serving.bodies import (
    AdapterBody,
    AdaptersAnswer,
    BaseModelBody,
    BlobBody,
    MeasuredLink,
    PlanAnswer,
    PlanRequest,
    RadioLink,
    ReportRequest,
)
from rankcast.delivery.serving.failures import RefusalError, responses
from rankcast.delivery.serving.settings import Serving
from rankcast.errors import InfeasibleDeadlineError, LinkError, nearest
from rankcast.link.rate_models import parameters_of, rate_model

router = APIRouter(prefix="/v1", tags=["calls"])
Known = Annotated[Caller, Depends(caller_of_calls)]


@router.post("/plan", responses=responses(401, 404, 408, 409, 413, 415, 422, 429, 503))
def plan(request: Request, wanted: PlanRequest, caller: Known) -> PlanAnswer:
    """Say which blobs a device should fetch now.

    The prefix of lowest expected loss whose missing blobs arrive before the deadline. It is advice:
    a device fetches only what a signed manifest names.
    """
    began = time.perf_counter()
    serving: Serving = request.app.state.serving
    manifest = _release(serving, wanted).manifest
    budget = budget_bits_of(wanted.link, wanted.deadline_s)
    try:
        rate_bps = budget / wanted.deadline_s
        found = plan_fetch(manifest, budget, frozenset(wanted.held), rate_bps)
    except InfeasibleDeadlineError:
        serving.metrics.infeasible.labels(manifest.name).inc()
        raise
    finally:
        serving.metrics.plan_s.observe(time.perf_counter() - began)
    answer = PlanAnswer(
        adapter=manifest.name,
        version=manifest.version,
        ladder=found.ladder,
        n_rungs=found.n_rungs,
        blobs=[BlobBody(sha256=b.sha256, n_bytes=b.n_bytes) for b in found.missing],
        bits=found.bits,
        loss=found.loss,
        accuracy=found.accuracy,
        planner=found.planner,
    )
    serving.registry.record(caller.name, "plan", _plan_event(wanted, answer, budget, manifest))
    return answer


@router.post(
    "/report",
    status_code=HTTPStatus.NO_CONTENT,
    responses=responses(401, 408, 413, 415, 422, 429, 503),
)
def report(request: Request, done: ReportRequest, caller: Known) -> Response:
    """Keep what a device did."""
    serving: Serving = request.app.state.serving
    serving.registry.record(caller.name, "report", done.model_dump(mode="json"))
    serving.metrics.reports.labels(done.event).inc()
    return Response(status_code=HTTPStatus.NO_CONTENT)


def adapters(request: Request, caller: Known) -> AdaptersAnswer:
    """List the adapters that are published."""
    del caller
    serving: Serving = request.app.state.serving
    found = serving.releases.current()
    return AdaptersAnswer(adapters=[described(found[name]) for name in sorted(found)])


@router.get("/allowed", status_code=HTTPStatus.NO_CONTENT, responses=responses(401, 429, 503))
def allowed(caller: Annotated[Caller, Depends(caller_of_files)]) -> Response:
    """Say whether a device may fetch files: for a proxy that hands them out itself."""
    del caller
    return Response(status_code=HTTPStatus.NO_CONTENT)


router.add_api_route("/adapters", adapters, methods=["GET"], responses=responses(401, 429, 503))
router.add_api_route("/adapters", adapters, methods=["HEAD"], include_in_schema=False)


def budget_bits_of(link: RadioLink | MeasuredLink, deadline_s: float) -> float:
    """Return the bits that a link carries before a deadline; 0 if it carries nothing.

    Raises:
        ConfigError: a rate model that does not exist, or its parameters missing or unknown.
        LinkError: a link outside physics.
    """
    if isinstance(link, MeasuredLink):
        return link.throughput_bps * deadline_s
    given = {"bandwidth_hz": link.bandwidth_hz, "impl_loss_db": 0.0}
    wanted = parameters_of(link.rate_model)
    params = {key: value for key, value in given.items() if key in wanted} | link.rate_params
    model = rate_model(link.rate_model, **params)
    efficiency = float(model.spectral_efficiency(np.array(link.snr_db)))
    if not math.isfinite(efficiency):
        raise LinkError(f"{link.rate_model} with {params} says nothing at {link.snr_db:g} dB.")
    return efficiency * link.bandwidth_hz * deadline_s


def no_adapter(name: str, found: Iterable[str]) -> RefusalError:
    """Return the refusal of an adapter that is not published."""
    return RefusalError(
        HTTPStatus.NOT_FOUND,
        f"There is no adapter {name!r}{nearest(name, found)}. GET /v1/adapters lists them.",
    )


def _release(serving: Serving, wanted: PlanRequest) -> Release:
    found = serving.releases.current()
    if wanted.adapter not in found:
        raise no_adapter(wanted.adapter, found)
    base = found[wanted.adapter].manifest.base
    if base.fingerprint != wanted.base_fingerprint:
        raise RefusalError(
            HTTPStatus.CONFLICT,
            f"Adapter {wanted.adapter!r} is for {base.name} (fingerprint {base.fingerprint}), not "
            f"for a model with fingerprint {wanted.base_fingerprint}.",
        )
    return found[wanted.adapter]


def _plan_event(
    wanted: PlanRequest, answer: PlanAnswer, budget: float, manifest: Manifest
) -> dict[str, object]:
    """Return what the dashboard shows of a plan: everything but the lists of blobs."""
    ladder, held = manifest.ladders[answer.ladder], set(wanted.held)
    here = takewhile(lambda rung: rung.blob.sha256 in held, ladder.rungs)
    n_held_rungs = sum(1 for _ in here) if ladder.header.sha256 in held else 0
    return {
        **answer.model_dump(exclude={"blobs"}),
        "n_blobs": len(answer.blobs),
        "n_held": len(wanted.held),
        "n_held_rungs": n_held_rungs,
        "link": wanted.link.model_dump(),
        "deadline_s": wanted.deadline_s,
        "budget_bits": budget,
    }


def described(release: Release) -> AdapterBody:
    """Return a release in a few words."""
    manifest: Manifest = release.manifest
    assert manifest.base.fingerprint is not None
    return AdapterBody(
        name=manifest.name,
        version=manifest.version,
        base=BaseModelBody(name=manifest.base.name, fingerprint=manifest.base.fingerprint),
        n_rungs=[len(ladder.rungs) for ladder in manifest.ladders],
        n_bytes=sum(blob.n_bytes for blob in manifest.blobs),
        manifest=f"/targets/adapters/{release.target.sha256}.{manifest.name}.json",
    )
