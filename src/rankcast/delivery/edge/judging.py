"""What a device takes: which releases it accepts, and which of them are worth putting in force."""

from __future__ import annotations

from rankcast.delivery.edge.records import DeviceState, Release
from rankcast.delivery.edge.seating import Seat
from rankcast.delivery.edge.syncing import Outcome
from rankcast.delivery.manifest import Manifest
from rankcast.errors import ModelError, TrustError

_EARLY_SHARE, _EARLY_NATS = 0.25, 0.1
"""Of the gap in expected loss between the first chunk and the prefix that is wanted, and nats: what
may still be missing when a device that has nothing begins."""


def early_prefix(manifest: Manifest, wanted: Release) -> Release | None:
    """Return a shorter prefix that is worth beginning with; None if there is none.

    A first chunk alone may be worse than no adapter at all, so it takes measured losses to tell.
    """
    rungs = manifest.ladders[wanted.ladder].rungs[: wanted.n_rungs]
    first, last = rungs[0].loss, rungs[-1].loss
    if first is None or last is None:
        return None
    enough = last + max(_EARLY_SHARE * (first - last), _EARLY_NATS)
    good = (n for n, rung in enumerate(rungs, 1) if rung.loss is not None and rung.loss <= enough)
    n_rungs = next(good)
    if n_rungs == len(rungs):
        return None
    return Release.of(manifest, wanted.ladder, n_rungs)


def check_release(
    manifest: Manifest, state: DeviceState, adapter: str, base_fingerprint: str
) -> None:
    """Refuse what a device must not take.

    Raises:
        TrustError: another adapter, an older release, or another one under the same version.
        ModelError: another base model.
    """
    if manifest.name != adapter:
        raise TrustError(f"Asked for {adapter}, got a release of {manifest.name}.")
    if manifest.version < state.newest_version:
        raise TrustError(
            f"{adapter} was at version {state.newest_version}, and version {manifest.version} is "
            f"offered now: a release never goes back. To bring older weights back, publish them as "
            f"a new version."
        )
    known = state.manifest_sha256 if manifest.version == state.newest_version else None
    if known is not None and known != Seat.digest_of(manifest):
        raise TrustError(
            f"Version {manifest.version} of {adapter} is not the one that this device has seen "
            f"before. Ask whoever published: a change is a new version."
        )
    if manifest.base.fingerprint != base_fingerprint:
        raise ModelError(
            f"{adapter} adapts {manifest.base.name or 'a model'} (fingerprint "
            f"{str(manifest.base.fingerprint)[:12]}…), this device has another base model "
            f"({base_fingerprint[:12]}…). Install that model, or ask for another adapter."
        )


def _better(wanted: Release, active: Release | None) -> bool:
    """Whether a release is worth more than the one in force: newer, or a better prefix of it."""
    if active is None or wanted.version != active.version:
        return True
    if wanted.loss is not None and active.loss is not None:
        return wanted.loss < active.loss
    return wanted.ladder == active.ladder and wanted.n_rungs > active.n_rungs


def why_not(
    wanted: Release, state: DeviceState, *, retry_rejected: bool
) -> tuple[Outcome, str] | None:
    """Return why a release is not to be put in force; None if it is."""
    if not _better(wanted, state.active):
        return "up-to-date", "Nothing better than what is in force arrives in time."
    if wanted.label in state.rejected and not retry_rejected:
        return "rejected", (
            f"{wanted.label} failed its proof before. It is not tried again by itself; rankcast "
            f"edge sync does."
        )
    return None
