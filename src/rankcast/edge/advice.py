"""Choose which prefix to fetch: as the server advises, checked against the manifest, or alone.

Advice can only pick among prefixes that the signed manifest names. A server that cannot be asked
is no obstacle: the device plans for itself, from the same manifest and the same link.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

import httpx2
import numpy as np

from rankcast.errors import (
    ConfigError,
    DeliveryError,
    InfeasibleDeadlineError,
    TrustError,
    UnavailableError,
)
from rankcast.link.capacity import rate_bps
from rankcast.link.costs import budget_bits
from rankcast.link.rate_models import rate_model
from rankcast.records import LinkState
from rankcast.release.manifest import Manifest
from rankcast.release.plan import FetchPlan, next_better, plan_fetch

LARGEST_ANSWER = 2**20
"""Bytes."""
_WAIT_S = 10.0
_HTTP_OK = 200
_STEPS = {"Prefer": "steps"}
"""Tells a server that this device asks again between steps, if its cell is shared."""
_LONGEST_REASON = 500

PlannedBy = Literal["server", "device"]


@dataclass(frozen=True, slots=True)
class RadioLink:
    """A link as the modem sees it.

    Attributes:
        snr_db: received Es/N0 [dB].
        bandwidth_hz: [Hz].
        rate_model: what such a link carries; see `link.rate_models`.
    """

    snr_db: float
    bandwidth_hz: float
    rate_model: str = "awgn"

    def throughput_bps(self, deadline_s: float) -> float:
        """Return the rate [bit/s].

        Raises:
            LinkError: an impossible link.
        """
        model = rate_model(self.rate_model, self.bandwidth_hz)
        link = LinkState(
            np.array([self.snr_db]), np.array([self.bandwidth_hz]), np.array([deadline_s])
        )
        return float(rate_bps(model, link)[0])


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """A link by what it carried.

    Attributes:
        bps: throughput [bit/s].
    """

    bps: float

    def throughput_bps(self, deadline_s: float) -> float:
        """Return the rate [bit/s]."""
        del deadline_s
        return self.bps


class CellFullError(UnavailableError):
    """The device's cell has no room for it now.

    Attributes:
        wait_s: after which to ask again [s].
    """

    def __init__(self, message: str, wait_s: float) -> None:
        """Keep the wait with the message."""
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Advice:
    """A plan and who made it.

    Attributes:
        plan: which prefix, and what of it is missing.
        planned_by: the server, or the device itself.
        cell: what the server says of the cell that the device shares, for people; None for none.
        asks_again: whether to ask again once the plan's blobs are here.
    """

    plan: FetchPlan
    planned_by: PlannedBy
    cell: str | None = None
    asks_again: bool = False


def advise(
    http: httpx2.Client,
    manifest: Manifest,
    link: RadioLink | MeasuredLink,
    deadline_s: float,
    held: AbstractSet[str],
    *,
    names_version: bool = False,
) -> Advice:
    """Ask the server for a plan; make one if it gives none.

    A link that was only measured may be better by now, and only another transfer can tell: where
    nothing more is expected in time over it, the next better prefix is planned all the same. What
    arrives of it until the deadline is kept. In a cell the device takes what the server says.

    Args:
        http: the connection to the server.
        manifest: what is released; trusted.
        link: to plan for.
        deadline_s: time for the transfer [s].
        held: SHA-256 of the blobs that are here.
        names_version: whether to ask for the manifest's version, since it is not the newest.

    Raises:
        TrustError: the plan names blobs that are no prefix of a file of the manifest.
        InfeasibleDeadlineError: not even the first chunk arrives in time, as the modem sees it.
        CellFullError: the device's cell has no room for more.
        ConfigError: a deadline that is not positive.
    """
    if not deadline_s > 0:
        raise ConfigError(f"A deadline is positive [s], got {deadline_s}.")
    question: dict[str, Any] = {
        "adapter": manifest.name,
        "base_fingerprint": manifest.base.fingerprint,
        "link": asdict(link) if isinstance(link, RadioLink) else {"throughput_bps": link.bps},
        "deadline_s": deadline_s,
        "held": sorted(held),
    }
    if names_version:  # which servers of earlier versions do not know
        question["version"] = manifest.version
    answer = _ask(http, question)
    if answer is not None and answer.get("version") == manifest.version:
        told = answer.get("cell")
        cell = told if isinstance(told, dict) else None
        reason = None if cell is None else str(cell.get("reason"))[:_LONGEST_REASON]
        asks_again = cell is not None and cell.get("asks_again") is True
        advice = Advice(checked_plan(answer, manifest, held), "server", reason, asks_again)
    else:
        advice = Advice(_own_plan(manifest, link, deadline_s, held), "device")
    if isinstance(link, MeasuredLink) and not advice.plan.missing and advice.cell is None:
        better = next_better(manifest, advice.plan, held)
        return advice if better is None else Advice(better, "device")
    return advice


def _own_plan(
    manifest: Manifest,
    link: RadioLink | MeasuredLink,
    deadline_s: float,
    held: AbstractSet[str],
) -> FetchPlan:
    """Plan without the server; over a link that was only measured, for the first chunk at least."""
    rate_bps = link.throughput_bps(deadline_s)
    budget = float(budget_bits(rate_bps, deadline_s))
    try:
        return plan_fetch(manifest, budget, held, rate_bps)
    except InfeasibleDeadlineError as error:
        if isinstance(link, RadioLink):
            raise
        return plan_fetch(manifest, error.payload_bits, held)


def checked_plan(
    answer: Mapping[str, Any], manifest: Manifest, held: AbstractSet[str]
) -> FetchPlan:
    """Return a server's plan, made anew from the manifest.

    Raises:
        TrustError: it names something else than a prefix of a file of the manifest.
    """
    index, n_chunks = answer.get("ladder"), answer.get("n_rungs")
    if not _is_whole(index, 0, len(manifest.files) - 1):
        raise TrustError(_FOREIGN.format(f"file {index!r}"))
    file = manifest.files[index]
    if not _is_whole(n_chunks, 1, len(file.chunks)):
        raise TrustError(_FOREIGN.format(f"{n_chunks!r} chunks of file {index}"))
    known = {(blob.sha256, blob.n_bytes) for blob in file.blobs(n_chunks)}
    named = answer.get("blobs")
    for blob in named if isinstance(named, list) else [named]:
        pair = (blob.get("sha256"), blob.get("n_bytes")) if isinstance(blob, dict) else None
        if pair not in known:
            raise TrustError(_FOREIGN.format(f"the blob {str(blob)[:100]}"))
    planner = "policy" if answer.get("planner") == "policy" else "solver"
    return FetchPlan.of(manifest, index, n_chunks, held, planner)


_FOREIGN = (
    "The server's plan names {}, which is no part of the prefix in the signed release. Nothing was "
    "fetched; ask whoever runs the server."
)


def _ask(http: httpx2.Client, question: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the server's answer; None if it gives no plan.

    Raises:
        CellFullError: it says that the device's cell has no room.
    """
    try:
        with http.stream(
            "POST", "v1/plan", json=question, headers=_STEPS, timeout=_WAIT_S
        ) as response:
            status, headers = response.status_code, response.headers
            if status != _HTTP_OK and "Rankcast-Cell" not in headers:
                return None
            body = bytearray()
            for received in response.iter_raw():
                body += received
                if len(body) > LARGEST_ANSWER:
                    return None
        answer = json.loads(bytes(body))
    except (httpx2.HTTPError, DeliveryError, ValueError, RecursionError):
        return None
    if isinstance(answer, dict) and status != _HTTP_OK:
        asked, told = headers.get("Retry-After", ""), answer.get("error")
        reason = told.get("message") if isinstance(told, dict) else "Its cell has no room."
        wait_s = float(asked) if asked.isdecimal() else math.inf
        raise CellFullError(str(reason)[:_LONGEST_REASON], max(1.0, wait_s))
    return answer if isinstance(answer, dict) else None


def _is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
