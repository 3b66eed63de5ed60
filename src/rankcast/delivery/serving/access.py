"""Who asks, whether it may, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rankcast.delivery.serving.buckets import Buckets
from rankcast.delivery.serving.failures import RefusalError, too_often
from rankcast.delivery.serving.settings import Serving

_BEARER = HTTPBearer(
    auto_error=False, description="One token for each device: rankcast tokens add NAME."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the device; its address where an open server does not know it.
        sees_all: whether it may see the events of other devices.
    """

    name: str
    sees_all: bool


def caller_of_calls(request: Request, credentials: Credentials) -> Caller:
    """Return who calls `/v1`.

    Raises:
        RefusalError: 401 or 429.
    """
    serving: Serving = request.app.state.serving
    return _let_in(request, credentials, serving, serving.calls)


def caller_of_files(request: Request, credentials: Credentials) -> Caller:
    """Return who asks for a file.

    Raises:
        RefusalError: 401 or 429.
    """
    serving: Serving = request.app.state.serving
    return _let_in(request, credentials, serving, serving.files)


def _let_in(
    request: Request,
    credentials: HTTPAuthorizationCredentials | None,
    serving: Serving,
    buckets: Buckets,
) -> Caller:
    caller = _known(request, credentials, serving)
    request.state.device = caller.name
    wait_s = buckets.take(caller.name)
    if wait_s > 0:
        raise too_often(wait_s)
    return caller


def _known(
    request: Request, credentials: HTTPAuthorizationCredentials | None, serving: Serving
) -> Caller:
    device = None if credentials is None else serving.registry.device_of(credentials.credentials)
    is_open = serving.settings.is_open
    if device is not None:
        return Caller(device.name, is_open or device.role == "operator")
    if is_open:
        address = request.client.host if request.client else "unknown"
        return Caller(address[:64], sees_all=True)  # a proxy's header may say anything
    had = "This token is not known, or was revoked." if credentials else "A token is needed."
    raise RefusalError(
        HTTPStatus.UNAUTHORIZED,
        f"{had} Send Authorization: Bearer TOKEN with what rankcast tokens add printed.",
        {"WWW-Authenticate": "Bearer"},
    )
