"""Who asks, whether it may, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rankcast.rate_limit import Buckets
from rankcast.server.errors import RefusalError, too_many_requests
from rankcast.server.settings import ServerState
from rankcast.server.shared_limits import SharedBuckets

_BEARER = HTTPBearer(
    auto_error=False, description="One token for each device: rankcast devices add NAME."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the device; its address if it has no token and the server asks for none.
        sees_all: whether it may see the events of other devices.
        is_operator: whether it has an operator's token, on an open server, too.
        groups: of the device.
    """

    name: str
    sees_all: bool
    is_operator: bool = False
    groups: tuple[str, ...] = ()


def caller_of_calls(request: Request, credentials: Credentials) -> Caller:
    """Return who calls `/v1`.

    Raises:
        RefusalError: 401 or 429.
    """
    server: ServerState = request.app.state.server
    return _admit(request, credentials, server, server.calls)


def watcher(caller: Annotated[Caller, Depends(caller_of_calls)]) -> Caller:
    """Return the operator who looks, or anyone on a server that asks for no token.

    Raises:
        RefusalError: 401, 403 or 429.
    """
    if not caller.sees_all:
        raise _no_operator(caller)
    return caller


def operator(caller: Annotated[Caller, Depends(caller_of_calls)]) -> Caller:
    """Return the operator who calls, which takes a token even on a server that asks for none.

    Raises:
        RefusalError: 401, 403 or 429.
    """
    if not caller.is_operator:
        raise _no_operator(caller)
    return caller


def caller_of_files(request: Request, credentials: Credentials) -> Caller:
    """Return who asks for a file.

    Raises:
        RefusalError: 401 or 429.
    """
    server: ServerState = request.app.state.server
    return _admit(request, credentials, server, server.files)


def _admit(
    request: Request,
    credentials: HTTPAuthorizationCredentials | None,
    server: ServerState,
    buckets: Buckets | SharedBuckets,
) -> Caller:
    caller = _identify(request, credentials, server)
    request.state.device = caller.name
    wait_s = buckets.take(caller.name)
    if wait_s > 0:
        raise too_many_requests(wait_s)
    return caller


def _identify(
    request: Request, credentials: HTTPAuthorizationCredentials | None, server: ServerState
) -> Caller:
    device = None if credentials is None else server.registry.device_of(credentials.credentials)
    needs_token = server.settings.needs_token
    if device is not None:
        is_operator = device.role == "operator"
        return Caller(device.name, not needs_token or is_operator, is_operator, device.groups)
    if not needs_token:
        address = request.client.host if request.client else "unknown"
        return Caller(address[:64], sees_all=True)  # a proxy's header may say anything
    problem = "This token is not known, or was revoked." if credentials else "A token is needed."
    raise RefusalError(
        HTTPStatus.UNAUTHORIZED,
        f"{problem} Send Authorization: Bearer TOKEN with what rankcast devices add printed.",
        {"WWW-Authenticate": "Bearer"},
    )


def _no_operator(caller: Caller) -> RefusalError:
    return RefusalError(
        HTTPStatus.FORBIDDEN,
        f"{caller.name} is no operator; make a token with rankcast devices add NAME --operator.",
    )
