"""The rules of rollouts: when the next stage begins, what halts one, and what a device is told.

Pure functions: the time, the counts and what is published are passed in, so that every server
decides the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Literal

from rankcast.errors import ConfigError
from rankcast.server.rollouts.rollout import (
    FAILURES,
    Limits,
    Member,
    MemberState,
    Order,
    Rollout,
    Stage,
    position,
)

Action = Literal["pause", "resume", "abort", "advance"]


@dataclass(frozen=True, slots=True)
class Published:
    """The versions of an adapter that its signed release names.

    Attributes:
        newest: the release itself; None if there is none.
        older: that devices may go back to.
    """

    newest: int | None = None
    older: frozenset[int] = frozenset()

    @property
    def versions(self) -> frozenset[int]:
        """All of them."""
        return self.older if self.newest is None else self.older | {self.newest}

    @property
    def words(self) -> str:
        """All of them for people."""
        return ", ".join(map(str, sorted(self.versions))) or "none"


@dataclass(frozen=True, slots=True)
class StageCount:
    """The devices of a stage, without those whose token was revoked.

    Attributes:
        states: how many there are of each state.
        n_silent: how many of those that were offered the version fell silent.
    """

    states: Mapping[MemberState, int] = field(default_factory=dict)
    n_silent: int = 0

    @property
    def n_devices(self) -> int:
        """All of them."""
        return sum(self.states.values())

    def failures(self) -> dict[str, int]:
        """Return how many devices failed, by the names of `Limits`."""
        kinds = {state.replace("-", "_"): self.states.get(state, 0) for state in FAILURES}
        kinds["silent"] = self.n_silent
        return {"failed": sum(kinds.values()), **kinds}


def ranked_stages(
    stages: Sequence[Stage], salt: str, names: Iterable[str]
) -> tuple[tuple[Stage, ...], dict[str, int]]:
    """Share the devices of a target out among stages, each of which has one more at least.

    Args:
        stages: with their shares.
        salt: of the order of devices.
        names: of the devices; without any, later ones are placed by the shares alone.

    Returns:
        The stages with the cutoffs by which devices that come later are placed, and the stage of
        each device.
    """
    ranked = sorted((position(salt, name), name) for name in set(names))
    n, start, placed, stage_of = len(ranked), 0, [], {}
    for k, stage in enumerate(stages):
        is_last = k == len(stages) - 1
        end = n if is_last else min(n, max(start + 1, -int(-stage.share * n // 1)))
        stage_of |= {name: k for _, name in ranked[start:end]}
        cutoff = stage.share if not ranked else ranked[end - 1][0]
        placed.append(replace(stage, cutoff=1.0 if is_last else cutoff))
        start = end
    return tuple(placed), stage_of


def decide(
    rollout: Rollout, counts: Sequence[StageCount], now_s: float, *, is_published: bool
) -> Rollout | None:
    """Return how a rollout goes on by itself; None if it stays as it is.

    A limit that is exceeded in any stage begun so far comes before everything else. A clock that
    was set back only makes a stage last longer.

    Args:
        rollout: as it is.
        counts: of each stage.
        now_s: the time [s since 1970].
        is_published: whether its version can be had.
    """
    if not rollout.is_open:
        return None
    if rollout.state == "waiting":
        begun = replace(rollout, state="running", stage_began_s=now_s, changed_s=now_s)
        return begun if is_published else None
    for number, count in enumerate(counts[: rollout.stage + 1]):
        reason = _exceeded(rollout.order.limits, count)
        if reason:
            return replace(
                rollout, state="halted", halted_stage=number, changed_s=now_s,
                reason=f"Stage {number + 1}: {reason}.",
            )  # fmt: skip
    if rollout.state == "paused" or not is_published:
        return None
    after_s, count = rollout.order.stages[rollout.stage].after_s, counts[rollout.stage]
    least = rollout.order.least_share * count.n_devices - 1e-9
    is_due = after_s is not None and now_s - rollout.stage_began_s >= after_s
    if not is_due or count.states.get("activated", 0) < least:
        return None
    return _next_stage(rollout, now_s)


def changed_by_hand(
    rollout: Rollout, action: Action, now_s: float, *, reason: str = "", is_published: bool = True
) -> Rollout:
    """Return a rollout after what an operator asked for; asking twice changes nothing more.

    Args:
        rollout: as it is.
        action: `abort` takes all its devices back, whatever its state.
        now_s: the time [s since 1970].
        reason: for people.
        is_published: whether its version can be had.

    Raises:
        ConfigError: it is not in a state for that.
    """
    match action:
        case "pause" if rollout.state in ("running", "paused"):
            return replace(rollout, state="paused", reason=reason, changed_s=now_s)
        case "resume" if rollout.state in ("running", "paused"):
            return replace(rollout, state="running", reason="", changed_s=now_s)
        case "abort":
            return replace(rollout, state="aborted", reason=reason, changed_s=now_s)
        case "advance" if rollout.state == "running" and is_published:
            return _next_stage(rollout, now_s)
        case _:
            rest = "" if rollout.is_open else " It has ended; create another."
            if rollout.state == "waiting":
                rest = f" Publish version {rollout.order.version}, or abort the rollout."
            raise ConfigError(
                f"Rollout {rollout.number} is {rollout.state}: {_NOT_NOW[action]}{rest}"
            )


def version_told(
    rollout: Rollout, member: Member, now_s: float, *, active: int | None, time_zone: str
) -> int:
    """Return the version that a device is to have now.

    A device that failed with the version goes back by itself. Once a device has the version,
    neither a pause nor a closed window takes it away.

    Args:
        rollout: that it is part of.
        member: the device in it.
        now_s: the time [s since 1970].
        active: the version that it has; None if it has none, or does not say.
        time_zone: of the device.
    """
    order = rollout.order
    if not rollout.reaches(member.stage) or member.state in FAILURES:
        return member.before
    if order.version in (active, member.before) or member.state == "activated":
        return order.version
    if rollout.state == "paused" and member.state != "offered":
        return member.before
    may_change = order.window is None or order.window.is_open(now_s, time_zone)
    return order.version if may_change else member.before


def asked(
    rollout: Rollout,
    member: Member,
    *,
    active: int | None,
    rejected: AbstractSet[int] = frozenset(),
) -> Member:
    """Return a device after what its question says of itself, in case a report was lost.

    Args:
        rollout: that it is part of.
        member: the device in it.
        active: the version that it has; None if it has none, or does not say.
        rejected: versions that failed their proof on it.
    """
    version, state = rollout.order.version, member.state
    reached = rollout.reaches(member.stage)
    if active == version:
        return member if state in ("activated", "unhealthy") else replace(member, state="activated")
    if version in rejected and state not in FAILURES:
        return replace(member, state="rolled-back", message="It was rejected on the device.")
    if state == "activated" and active is not None:
        if reached:
            words = f"It went back to version {active} by itself."
            return replace(member, state="rolled-back", message=words)
        return replace(member, state="returned")
    if state == "offered" and not reached:
        return replace(member, state="returned")
    return member


def reported(rollout: Rollout, member: Member, version: int, event: str, message: str) -> Member:
    """Return a device after a report.

    Args:
        rollout: that it is part of.
        member: the device in it.
        version: of the release that the report is about.
        event: of the report.
        message: likewise.
    """
    if version == rollout.order.version:
        if event == "activated":
            return replace(member, state="activated", message="")
        if event in FAILURES:
            return replace(member, state=_FAILURE[event], message=message)
    went_back = version == member.before and event == "activated"
    if went_back and member.state in ("activated", "offered"):
        reached = rollout.reaches(member.stage)
        return member if reached else replace(member, state="returned")
    return member


def settled_version(
    rollouts: Sequence[tuple[Rollout, Member | None]],
    name: str,
    groups: Sequence[str],
    baseline: int,
) -> int:
    """Return the version that a device has from rollouts that have ended.

    Args:
        rollouts: of one adapter, the newest first, with the device in each.
        name: of the device.
        groups: of the device.
        baseline: where none of them says anything.
    """
    for rollout, known in rollouts:
        member = known or joining(rollout, name, groups, baseline)
        if member is None:
            continue
        if rollout.reaches(member.stage) and member.state not in FAILURES:
            return rollout.order.version
        if known is not None:
            return known.before
    return baseline


def joining(rollout: Rollout, name: str, groups: Sequence[str], before: int) -> Member | None:
    """Return a device that comes to a rollout later; None if it is not meant, or too late.

    Args:
        rollout: open or done: one that was halted or aborted takes no more devices.
        name: of the device.
        groups: of the device.
        before: the version that it has without the rollout.
    """
    takes = rollout.is_open or rollout.state == "done"
    if not takes or not rollout.order.target.matches(name, groups, rollout.order.adapter):
        return None
    return Member(name, rollout.order.stage_of(name), before)


def check_order(order: Order, published: Published) -> None:
    """Refuse an order of a version that cannot be had, now or with the next release.

    Args:
        order: what is asked for.
        published: what there is.

    Raises:
        ConfigError: no such version.
    """
    if order.before not in published.versions:
        raise ConfigError(
            f"Devices cannot be kept on version {order.before} of {order.adapter}: the signed "
            f"release names {published.words}."
        )
    following = (published.newest or 0) + 1
    if order.version > following:
        raise ConfigError(
            f"The next release of {order.adapter} will be version {following}; a rollout cannot "
            f"wait for version {order.version}."
        )
    if order.version not in published.versions and order.version < following:
        raise ConfigError(
            f"The signed release of {order.adapter} does not name version {order.version}, only "
            f"{published.words}. Publish its files again: they get a new version."
        )


_FAILURE: Mapping[str, MemberState] = {state: state for state in FAILURES}
_NOT_NOW: Mapping[Action, str] = {
    "pause": "only a running one can be paused.",
    "resume": "only a paused one can be resumed.",
    "advance": "only a running one whose version is published can begin its next stage.",
    "abort": "",
}


def _next_stage(rollout: Rollout, now_s: float) -> Rollout:
    if rollout.stage == rollout.order.n_stages - 1:
        return replace(rollout, state="done", changed_s=now_s)
    stage = rollout.stage + 1
    return replace(rollout, stage=stage, stage_began_s=now_s, changed_s=now_s)


def _exceeded(limits: Limits, count: StageCount) -> str:
    """Return which limit a stage exceeds, in words; nothing if none."""
    failures = count.failures()
    for kind, n in failures.items():
        limit = getattr(limits, kind)
        if limit is not None and limit.is_exceeded(n, count.n_devices):
            of = [f"{m} {k.replace('_', '-')}" for k, m in failures.items() if m and k != "failed"]
            detail = f" ({', '.join(of)})" if kind == "failed" else ""
            return (
                f"{n} of {count.n_devices} devices {kind.replace('_', ' ')}{detail}, "
                f"more than {limit.words}"
            )
    return ""
