"""How routes are declared: the errors that they describe, and HEAD beside GET."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter

from rankcast.server.schemas import ErrorAnswer

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors that a route may answer, for its description."""
    return {
        status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def readable(router: APIRouter, path: str, **about: Any) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that adds a route for GET and one for HEAD.

    They are two routes, of which one is described, because OpenAPI wants a name for each operation.
    """

    def decorate(endpoint: Endpoint) -> Endpoint:
        router.add_api_route(path, endpoint, methods=["GET"], **about)
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
        return endpoint

    return decorate
