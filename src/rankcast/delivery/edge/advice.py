"""Which prefix to fetch: what the server advises, checked against the manifest, or our own plan.

Advice can only pick among prefixes that the signed manifest names. A server that cannot be asked
is no obstacle: the device plans for itself, from the same manifest and the same link.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import numpy as np

from rankcast.delivery.manifest import Manifest
from rankcast.delivery.planning import FetchPlan, next_better, plan_fetch
from rankcast.errors import ConfigError, InfeasibleDeadlineError, TrustError
from rankcast.link.capacity import rate_bps
from rankcast.link.payload import budget_bits
from rankcast.link.rate_models import parameters_of, rate_model
from rankcast.records import LinkState

LARGEST_ANSWER = 2**20
"""Bytes."""
_WAIT_S = 10.0
_HTTP_OK = 200

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
        given = {"bandwidth_hz": self.bandwidth_hz, "impl_loss_db": 0.0}
        wanted = parameters_of(self.rate_model)
        model = rate_model(self.rate_model, **{k: v for k, v in given.items() if k in wanted})
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


@dataclass(frozen=True, slots=True)
class Advice:
    """A plan and who made it.

    Attributes:
        plan: which prefix, and what of it is missing.
        planned_by: the server, or the device itself.
    """

    plan: FetchPlan
    planned_by: PlannedBy


def advise(
    http: httpx2.Client,
    manifest: Manifest,
    link: RadioLink | MeasuredLink,
    deadline_s: float,
    held: AbstractSet[str],
) -> Advice:
    """Ask the server for a plan; make one if it gives none.

    A link that was only measured may be better by now, and only another transfer can tell: where
    nothing more is expected in time over it, the next better prefix is planned all the same. What
    arrives of it until the deadline is kept.

    Args:
        http: the connection to the server.
        manifest: what is released; trusted.
        link: to plan for.
        deadline_s: time for the transfer [s].
        held: SHA-256 of the blobs that are here.

    Raises:
        TrustError: the plan names blobs that are no prefix of a ladder of the manifest.
        InfeasibleDeadlineError: not even the first chunk arrives in time, as the modem sees it.
        ConfigError: a deadline that is not positive.
    """
    if not deadline_s > 0:
        raise ConfigError(f"A deadline is positive [s], got {deadline_s}.")
    advice = _advice(http, manifest, link, deadline_s, held)
    if isinstance(link, MeasuredLink) and not advice.plan.missing:
        better = next_better(manifest, advice.plan, held)
        return advice if better is None else Advice(better, "device")
    return advice


def _advice(
    http: httpx2.Client,
    manifest: Manifest,
    link: RadioLink | MeasuredLink,
    deadline_s: float,
    held: AbstractSet[str],
) -> Advice:
    """Return the server's plan or our own."""
    answer = _ask(http, manifest, link, deadline_s, held)
    if answer is not None and answer.get("version") == manifest.version:
        return Advice(checked_plan(answer, manifest, held), "server")
    rate_bps = link.throughput_bps(deadline_s)
    budget = float(budget_bits(rate_bps, deadline_s))
    try:
        plan = plan_fetch(manifest, budget, held, rate_bps)
    except InfeasibleDeadlineError as error:
        if isinstance(link, RadioLink):
            raise
        plan = plan_fetch(manifest, error.payload_bits, held)
    return Advice(plan, "device")


def checked_plan(
    answer: Mapping[str, Any], manifest: Manifest, held: AbstractSet[str]
) -> FetchPlan:
    """Return a server's plan in the manifest's own words.

    Raises:
        TrustError: it names something else than a prefix of a ladder of the manifest.
    """
    index, n_rungs = answer.get("ladder"), answer.get("n_rungs")
    if not _whole(index, 0, len(manifest.ladders) - 1):
        raise TrustError(_FOREIGN.format(f"ladder {index!r}"))
    ladder = manifest.ladders[int(index)]  # pyright: ignore[reportArgumentType]
    if not _whole(n_rungs, 1, len(ladder.rungs)):
        raise TrustError(_FOREIGN.format(f"{n_rungs!r} chunks of ladder {index}"))
    rungs = ladder.rungs[: int(n_rungs)]  # pyright: ignore[reportArgumentType]
    blobs = (ladder.header, *(rung.blob for rung in rungs))
    known = {(blob.sha256, blob.n_bytes) for blob in blobs}
    named = answer.get("blobs")
    for blob in named if isinstance(named, list) else [named]:
        pair = (blob.get("sha256"), blob.get("n_bytes")) if isinstance(blob, dict) else None
        if pair not in known:
            raise TrustError(_FOREIGN.format(f"the blob {str(blob)[:100]}"))
    missing = tuple(dict.fromkeys(blob for blob in blobs if blob.sha256 not in held))
    bits = 8 * sum(blob.n_bytes for blob in missing)
    last = rungs[-1]
    planner = "policy" if answer.get("planner") == "policy" else "solver"
    return FetchPlan(ladder=int(index), n_rungs=len(rungs), missing=missing, bits=bits,  # pyright: ignore[reportArgumentType]
                     loss=last.loss, accuracy=last.accuracy,
                     planner=planner)  # fmt: skip


_FOREIGN = (
    "The server's plan names {}, which is no part of the prefix in the signed release. Nothing was "
    "fetched; ask whoever runs the server."
)


def _ask(
    http: httpx2.Client,
    manifest: Manifest,
    link: RadioLink | MeasuredLink,
    deadline_s: float,
    held: AbstractSet[str],
) -> Mapping[str, Any] | None:
    """Return the server's answer; None if it gives no plan."""
    if isinstance(link, RadioLink):
        described = {"snr_db": link.snr_db, "bandwidth_hz": link.bandwidth_hz,
                     "rate_model": link.rate_model}  # fmt: skip
    else:
        described = {"throughput_bps": link.bps}
    asked = {
        "adapter": manifest.name,
        "base_fingerprint": manifest.base.fingerprint,
        "link": described,
        "deadline_s": deadline_s,
        "held": sorted(held),
    }
    try:
        with http.stream("POST", "v1/plan", json=asked, timeout=_WAIT_S) as answer:
            if answer.status_code != _HTTP_OK:
                return None
            body = bytearray()
            for received in answer.iter_raw():
                body += received
                if len(body) > LARGEST_ANSWER:
                    return None
        found = json.loads(bytes(body))
    except (httpx2.HTTPError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
