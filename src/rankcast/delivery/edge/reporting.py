"""Tell the server what became of a release; nothing depends on whether it listens."""

from __future__ import annotations

import contextlib

import httpx2

from rankcast.delivery.edge.fetching import Fetched
from rankcast.delivery.edge.records import DeviceState

_WAIT_S = 5.0
_LONGEST = 500
"""Characters of a message."""


def report(
    http: httpx2.Client,
    event: str,
    state: DeviceState,
    fetched: Fetched | None = None,
    message: str = "",
) -> None:
    """Post an event of docs/delivery-api.md.

    Args:
        http: the connection to the server.
        event: what happened.
        state: of the device.
        fetched: what came; None for nothing.
        message: in words.
    """
    active, came = state.active, fetched or Fetched(0, 0.0)
    told = {
        "adapter": state.adapter,
        "version": state.newest_version,
        "ladder": 0 if active is None else active.ladder,
        "n_rungs": 0 if active is None else active.n_rungs,
        "event": event,
        "throughput_bps": state.throughput_bps,
        "received_bits": 8 * came.n_bytes,
        "elapsed_s": came.elapsed_s,
        "message": message[:_LONGEST],
    }
    with contextlib.suppress(httpx2.HTTPError):
        http.post("v1/report", json=told, timeout=_WAIT_S)
