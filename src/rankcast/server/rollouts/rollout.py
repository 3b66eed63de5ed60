"""A rollout as it was ordered and as far as it has come; nothing here reads a clock or a database.

A rollout brings one version of an adapter to its target in stages. A stage is a share of the
target's devices, in an order that the devices' names decide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rankcast.errors import ConfigError
from rankcast.server.rollouts.windows import Window

State = Literal["waiting", "running", "paused", "halted", "aborted", "done"]
"""Of a rollout: it waits for its version to be published; a limit halts it, a person aborts it."""
MemberState = Literal[
    "waiting", "offered", "activated", "rolled-back", "refused", "unhealthy", "returned"
]
"""Of a device: `returned` to the version before because the rollout was halted or aborted."""
OPEN: tuple[State, ...] = ("waiting", "running", "paused")
FAILURES: tuple[MemberState, ...] = ("rolled-back", "refused", "unhealthy")
MOST_STAGES = 20
_TOLERANCE = 1e-9
_HASH_BITS = 53
"""As many as a float holds, so that every program gets the same number."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How many devices of a stage may fail.

    Attributes:
        count: devices; None for a share.
        share: of the stage's devices; None for a count.
    """

    count: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is neither or both.

        Raises:
            ConfigError: it is, or is outside its range.
        """
        if (self.count is None) is (self.share is None):
            raise ConfigError("A limit is a count such as 3, or a share such as 5%.")
        if (self.count or 0) < 0 or not 0.0 <= (self.share or 0.0) <= 1.0:
            raise ConfigError("A limit is a count from 0 on, or a share from 0% to 100%.")

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Return the limit of a text: 3 devices or 5%.

        Raises:
            ConfigError: it is none.
        """
        try:
            return cls(share=share_of(text)) if text.endswith("%") else cls(count=int(text))
        except ValueError as error:
            raise ConfigError(
                f"A limit is a count such as 3, or a share such as 5%, got {text!r}."
            ) from error

    def is_exceeded(self, n: int, n_devices: int) -> bool:
        """Return whether `n` failures among the `n_devices` of a stage are too many."""
        if self.count is not None:
            return n > self.count
        assert self.share is not None
        return n > self.share * n_devices + _TOLERANCE

    @property
    def words(self) -> str:
        """The limit for people."""
        return f"{self.count}" if self.share is None else percent(self.share)


def share_of(text: str) -> float:
    """Return the share of a text such as 10%.

    Raises:
        ConfigError: it is none from 0% to 100%.
    """
    try:
        share = float(text.removesuffix("%")) / 100.0
    except ValueError:
        share = math.nan
    if not text.endswith("%") or not 0.0 <= share <= 1.0:
        raise ConfigError(f"A share is from 0% to 100%, such as 10%, got {text!r}.")
    return share


def percent(share: float) -> str:
    """Return a share for people, as `share_of` reads it."""
    return f"{100.0 * share:.6g}%"


@dataclass(frozen=True, slots=True)
class Limits:
    """What halts a rollout; None watches for nothing of a kind.

    Attributes:
        failed: devices of all kinds below together.
        rolled_back: that took the adapter before back by themselves.
        refused: that did not trust the release, or have another base model.
        unhealthy: that took it and said later that they do not work.
        silent: that were offered it and have not asked since.
    """

    failed: Limit | None = field(default_factory=lambda: Limit(share=0.05))
    rolled_back: Limit | None = None
    refused: Limit | None = None
    unhealthy: Limit | None = None
    silent: Limit | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Which devices a rollout is for; all of them if nothing is named.

    Attributes:
        groups: a device of one of them is meant.
        devices: so is one of these names.
        share: of those, by the hash of their names.
    """

    groups: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            ConfigError: it is.
        """
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"A target's share is above 0% and up to 100%, got {self.share:.0%}.")

    def matches(self, name: str, groups: Sequence[str], adapter: str) -> bool:
        """Return whether a device is meant.

        Args:
            name: of the device.
            groups: of the device.
            adapter: the share is of other devices for another adapter.
        """
        named = not self.groups and not self.devices
        named = named or name in self.devices or not set(self.groups).isdisjoint(groups)
        return named and (self.share == 1.0 or position(f"{adapter}:target", name) < self.share)

    @property
    def words(self) -> str:
        """The target for people."""
        groups = [f"group {name}" for name in self.groups]
        names = [f"{len(self.devices)} named devices"] if self.devices else []
        of = " and ".join([*groups, *names]) or "all devices"
        return of if self.share == 1.0 else f"{percent(self.share)} of {of}"


def position(salt: str, name: str) -> float:
    """Return where a device stands in an order of all names, from 0 to below 1."""
    digest = hashlib.sha256(f"{salt}:{name}".encode("utf-8", "replace")).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _HASH_BITS)) / 2.0**_HASH_BITS


@dataclass(frozen=True, slots=True)
class Stage:
    """The devices that get a version together.

    Attributes:
        share: of the target, the stages before included.
        after_s: time after its beginning until the next stage begins [s]; None for by hand.
        cutoff: devices up to this position belong to it, or to a stage before.
    """

    share: float
    after_s: float | None = None
    cutoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator asks for.

    Attributes:
        adapter: its name.
        version: that the target gets.
        before: that devices have until then, and get back.
        target: which devices.
        stages: in order; the last one is the whole target.
        limits: that halt it.
        least_share: of a stage's devices that have to answer with the version before the next stage
            begins by itself.
        silent_after_s: a device that was offered the version counts as silent once it was not heard
            of for so long [s].
        window: when devices may change; None for always. Going back needs no window.
    """

    adapter: str
    version: int
    before: int
    target: Target = field(default_factory=Target)
    stages: tuple[Stage, ...] = (Stage(1.0),)
    limits: Limits = field(default_factory=Limits)
    least_share: float = 0.8
    silent_after_s: float = 86400.0
    window: Window | None = None

    def __post_init__(self) -> None:
        """Refuse what could not end.

        Raises:
            ConfigError: stages out of order, or versions, shares or times that cannot be.
        """
        shares = [stage.share for stage in self.stages]
        rising = all(a < b for a, b in zip([0.0, *shares], shares, strict=False))
        if not shares or not rising or shares[-1] != 1.0 or len(shares) > MOST_STAGES:
            raise ConfigError(
                f"Stages are rising shares of the target of which the last is 100%, at most "
                f"{MOST_STAGES}, such as 1% 10% 100%. To reach fewer devices, name a target."
            )
        if any(s.after_s is not None and not 0.0 <= s.after_s < math.inf for s in self.stages):
            raise ConfigError("The time until the next stage is at least 0 s.")
        if self.version == self.before or min(self.version, self.before) < 1:
            raise ConfigError(
                f"A rollout leads from one version to another, got {self.before} and "
                f"{self.version}."
            )
        if not 0.0 <= self.least_share <= 1.0 or not 0.0 < self.silent_after_s < math.inf:
            raise ConfigError("A least share is from 0% to 100%, and a silence is longer than 0 s.")

    @property
    def salt(self) -> str:
        """Decides the order of devices; another version begins with others."""
        return f"{self.adapter}:{self.version}"

    def stage_of(self, name: str) -> int:
        """Return the stage of a device that the target means."""
        place = position(self.salt, name)
        return next((k for k, s in enumerate(self.stages) if place <= s.cutoff), self.n_stages - 1)

    @property
    def n_stages(self) -> int:
        """How many stages there are."""
        return len(self.stages)

    def to_plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Order:
        """Rebuild one that `to_plain` wrote."""
        target, window = raw["target"], raw["window"]
        limits = {k: None if v is None else Limit(**v) for k, v in raw["limits"].items()}
        return cls(
            raw["adapter"], raw["version"], raw["before"],
            Target(tuple(target["groups"]), tuple(target["devices"]), target["share"]),
            tuple(Stage(**stage) for stage in raw["stages"]),
            Limits(**limits), raw["least_share"], raw["silent_after_s"],
            None if window is None else Window(**{**window, "days": tuple(window["days"])}),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rollout:
    """An order and how far it has come.

    Attributes:
        number: grows with every rollout.
        order: what was asked for.
        state: what it does.
        stage: the last stage that was begun, from 0 on.
        stage_began_s: when [s since 1970]; 0 while it waits.
        halted_stage: devices of this stage and of later ones go back; None unless halted.
        reason: why it was halted, paused or aborted, for people.
        created_s: when it was ordered [s since 1970].
        changed_s: when it changed last [s since 1970].
        revision: grows with every change: who changes it names the one it read.
    """

    number: int
    order: Order
    state: State = "waiting"
    stage: int = 0
    stage_began_s: float = 0.0
    halted_stage: int | None = None
    reason: str = ""
    created_s: float = 0.0
    changed_s: float = 0.0
    revision: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it may still go on."""
        return self.state in OPEN

    @property
    def is_everywhere(self) -> bool:
        """Whether every device has gone through it, so that none before it counts."""
        target = self.order.target
        is_all = not target.groups and not target.devices and target.share == 1.0
        return self.state == "done" and is_all

    def reaches(self, stage: int) -> bool:
        """Return whether devices of a stage are to have the version."""
        if self.state in ("running", "paused", "done"):
            return stage <= self.stage
        return self.state == "halted" and stage < (self.halted_stage or 0)


@dataclass(frozen=True, slots=True)
class Member:
    """A device in a rollout.

    Attributes:
        device: its name.
        stage: in which it gets the version.
        before: the version that it has until then, and gets back.
        state: what became of it.
        offered_s: when it was told the version first [s since 1970]; None if it was not.
        seen_s: when it last asked since then [s since 1970].
        message: what it said of a failure.
    """

    device: str
    stage: int
    before: int
    state: MemberState = "waiting"
    offered_s: float | None = None
    seen_s: float | None = None
    message: str = ""
