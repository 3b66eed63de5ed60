"""How errors are answered: in one shape, with the words that a person needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rankcast.errors import ConfigError, DeliveryError, LinkError, RankcastError
from rankcast.server.registry import DatabaseError

_LOG = logging.getLogger("rankcast.serve")
_MOST_PROBLEMS = 5


class RefusalError(DeliveryError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep the status with the message."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def error_answer(
    status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the answer of an error, which no cache may keep."""
    body = {"error": {"type": kind, "message": message}}
    return JSONResponse(body, status, {"Cache-Control": "no-store", **(headers or {})})


def too_many_requests(wait_s: float) -> RefusalError:
    """Return the refusal of a request that came too soon."""
    seconds = max(1, math.ceil(wait_s))
    return RefusalError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Too many requests of this device; wait {seconds} s.",
        {"Retry-After": str(seconds)},
    )


def handle_errors(app: FastAPI) -> None:
    """Let an app answer every error in one shape."""
    app.add_exception_handler(RefusalError, _on_refusal)
    app.add_exception_handler(RankcastError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_anything)


def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RefusalError)
    return error_answer(error.status, "DeliveryError", str(error), error.headers)


def _on_error(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 where the question was wrong, 503 where the store or database is."""
    del request
    if isinstance(error, LinkError | ConfigError):
        return error_answer(HTTPStatus.UNPROCESSABLE_ENTITY, type(error).__name__, str(error))
    _LOG.error("%s", error)
    message = "The database does not answer." if isinstance(error, DatabaseError) else str(error)
    headers = {"Retry-After": "5"}
    return error_answer(HTTPStatus.SERVICE_UNAVAILABLE, "DeliveryError", message, headers)


def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    media_type = request.headers.get("content-type", "none")
    if request.method == "POST" and "json" not in media_type:
        message = f"Bodies are JSON: send Content-Type: application/json, not {media_type[:80]}."
        return error_answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "DeliveryError", message)
    problems = [_problem(detail) for detail in error.errors()]
    if len(problems) > _MOST_PROBLEMS:
        problems = [*problems[:_MOST_PROBLEMS], f"{len(problems)} problems in all"]
    return error_answer(HTTPStatus.UNPROCESSABLE_ENTITY, "ConfigError", "; ".join(problems) + ".")


def _problem(detail: Mapping[str, Any]) -> str:
    where = ".".join(
        str(part) for part in detail["loc"] if part not in ("body", "radio", "measured")
    )
    return f"{where or 'The body'}: {detail['msg']}"


def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}."
    return error_answer(error.status_code, "DeliveryError", message, error.headers)


def _on_anything(request: Request, error: Exception) -> JSONResponse:
    del request, error  # the server logs it with its traceback
    message = "The server failed; its log says why."
    return error_answer(HTTPStatus.INTERNAL_SERVER_ERROR, "DeliveryError", message)
