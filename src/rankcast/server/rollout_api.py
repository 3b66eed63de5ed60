"""The calls of operators: begin a rollout, look at it, pause, resume, abort, advance it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from rankcast.server.auth import Caller, operator, watcher
from rankcast.server.errors import RefusalError
from rankcast.server.rollouts.bodies import OrderRequest, ReasonRequest, RolloutBody, RolloutsAnswer
from rankcast.server.rollouts.database import RolloutConflictError, UnknownRolloutError
from rankcast.server.rollouts.decide import Action
from rankcast.server.rollouts.rollout import Rollout
from rankcast.server.routes import readable, responses
from rankcast.server.settings import ServerState

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])
Operator = Annotated[Caller, Depends(operator)]
Watcher = Annotated[Caller, Depends(watcher)]
_ABOUT: dict[str, Any] = {"responses": responses(401, 403, 404, 409, 413, 415, 422, 429, 503)}
MOST_SHOWN = 50


@readable(router, "", responses=responses(401, 403, 422, 429, 503))
def rollouts(
    request: Request,
    caller: Watcher,
    *,
    adapter: Annotated[str | None, Query(max_length=64, description="Only its rollouts.")] = None,
    last: Annotated[int, Query(ge=1, le=MOST_SHOWN, description="At most so many.")] = 10,
) -> RolloutsAnswer:
    """List rollouts, the newest first."""
    del caller
    server: ServerState = request.app.state.server
    shown = server.rollouts.all(adapter)[:last]
    return RolloutsAnswer(rollouts=[_body(server, rollout) for rollout in shown])


@router.post("", status_code=HTTPStatus.CREATED, **_ABOUT)
def create(request: Request, wanted: OrderRequest, caller: Operator) -> RolloutBody:
    """Begin a rollout."""
    del caller
    server: ServerState = request.app.state.server
    published = server.published(wanted.adapter)
    before = server.rollouts.default_before(wanted.adapter, wanted.version, published)
    try:
        order = wanted.order(before)
        rollout = server.rollouts.create(order, server.settings.now_s(), published)
    except RolloutConflictError as error:
        raise RefusalError(HTTPStatus.CONFLICT, str(error)) from error
    return _body(server, rollout)


@readable(router, "/{number}", responses=responses(401, 403, 404, 422, 429, 503))
def rollout(request: Request, number: int, caller: Watcher) -> RolloutBody:
    """Say how far a rollout is."""
    del caller
    server: ServerState = request.app.state.server
    return _body(server, _known(server, number))


@router.post("/{number}/{action}", **_ABOUT)
def change(
    request: Request, number: int, action: Action, why: ReasonRequest, caller: Operator
) -> RolloutBody:
    """Pause, resume, abort or advance a rollout."""
    server: ServerState = request.app.state.server
    published = server.published(_known(server, number).order.adapter)
    reason = f"{why.reason or action} ({caller.name})"
    try:
        changed = server.rollouts.change(number, action, server.settings.now_s(), published, reason)
    except RolloutConflictError as error:
        raise RefusalError(HTTPStatus.CONFLICT, str(error)) from error
    return _body(server, changed)


def _known(server: ServerState, number: int) -> Rollout:
    try:
        return server.rollouts.get(number)
    except UnknownRolloutError as error:
        raise RefusalError(HTTPStatus.NOT_FOUND, str(error)) from error


def _body(server: ServerState, rollout: Rollout) -> RolloutBody:
    published = server.published(rollout.order.adapter)
    now_s = server.settings.now_s()
    return RolloutBody.of(server.rollouts.progress(rollout.number, now_s, published))
