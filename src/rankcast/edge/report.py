"""Tell the server what happened on a device, as in docs/delivery-api.md."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import Any

import httpx2

from rankcast.edge.fetch import Fetched
from rankcast.edge.state import DeviceState
from rankcast.errors import DeliveryError, UnavailableError
from rankcast.release.http import may_pass, shown, why_refused

_PATH, _WAIT_S = "v1/report", 5.0
_LONGEST_MESSAGE = 500
_NO_REPORTS = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


def report(
    http: httpx2.Client, event: str, state: DeviceState, fetched: Fetched, message: str
) -> None:
    """Tell the server what a sync came to; it need not listen."""
    body = _body(event, state, state.newest_version, message)
    body |= {"received_bits": 8 * fetched.n_bytes, "elapsed_s": fetched.elapsed_s}
    with (
        contextlib.suppress(httpx2.HTTPError, DeliveryError),
        http.stream("POST", _PATH, json=body, timeout=_WAIT_S),
    ):
        pass  # whatever it answers


def report_unhealthy(http: httpx2.Client, state: DeviceState, reason: str) -> int:
    """Tell the server that a device does not work with its active version; return which one it is.

    Args:
        http: the connection to the server.
        state: of the device.
        reason: for people.

    Raises:
        UnavailableError: the server does not answer, or not now.
        DeliveryError: no adapter is active, or the server takes no such report from this device.
    """
    if state.active is None:
        raise DeliveryError(f"No version of {state.adapter} is active here, so none is unhealthy.")
    body = _body("unhealthy", state, state.active.version, reason)
    try:
        with http.stream("POST", _PATH, json=body, timeout=_WAIT_S) as response:
            status = response.status_code
    except httpx2.HTTPError as error:
        raise UnavailableError(f"The report did not arrive ({error}). Try again later.") from error
    if status == HTTPStatus.NO_CONTENT:
        return state.active.version
    why = "only rankcast serve takes reports" if status in _NO_REPORTS else why_refused(response)
    told = f"{shown(response.url)}: HTTP status {status}: {why}."
    raise UnavailableError(f"{told} Try again later.") if may_pass(status) else DeliveryError(told)


def _body(event: str, state: DeviceState, version: int, message: str) -> dict[str, Any]:
    active = state.active
    return {
        "adapter": state.adapter,
        "version": version,
        "ladder": 0 if active is None else active.file_index,
        "n_rungs": 0 if active is None else active.n_chunks,
        "event": event,
        "throughput_bps": state.throughput_bps,
        "message": message[:_LONGEST_MESSAGE],
    }
