"""`rankcast rollout`: bring a version to devices in stages, and halt where it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from rankcast.cli.common import print_json
from rankcast.errors import ConfigError, nearest
from rankcast.server import DEFAULT_DATABASE

if TYPE_CHECKING:
    from rankcast.server.rollouts.bodies import RolloutBody
    from rankcast.server.rollouts.database import Rollouts
    from rankcast.server.rollouts.decide import Published

_DAY_S = 86400.0
_Action = Literal["pause", "resume", "abort", "advance"]


@dataclass(frozen=True, kw_only=True)
class _OnServer:
    store: Path = Path("store")
    """Folder that rankcast publish writes."""
    database: str = DEFAULT_DATABASE
    """The server's: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."""
    json: bool = False
    """Print JSON."""

    @contextmanager
    def _rollouts(self) -> Iterator[Rollouts]:
        from rankcast.server.registry import Registry
        from rankcast.server.rollouts.database import Rollouts

        with closing(Registry(self.database)) as registry:
            yield Rollouts(registry)

    def _published(self, adapter: str, *, may_lack: bool = False) -> Published:
        """Return the versions of an adapter.

        Raises:
            ConfigError: the store has no such adapter, and may not lack it.
        """
        from rankcast.release.store import Store, read_releases
        from rankcast.server.settings import published_of

        releases = read_releases(Store(self.store), {})
        if adapter not in releases and not may_lack:
            hint = nearest(adapter, releases) or "."
            raise ConfigError(f"{self.store} has no release of an adapter {adapter!r}{hint}")
        return published_of(releases.get(adapter))

    def _body(self, rollouts: Rollouts, number: int) -> RolloutBody:
        from rankcast.server.rollouts.bodies import RolloutBody

        published = self._published(rollouts.get(number).order.adapter, may_lack=True)
        return RolloutBody.of(rollouts.progress(number, time.time(), published))

    def _show(self, body: RolloutBody) -> None:
        if self.json:
            print_json(body.model_dump(mode="json"))
        else:
            _print(body)


@dataclass(frozen=True, kw_only=True)
class RolloutCreate(_OnServer):
    """Begin a rollout: devices of a stage get the version, the others keep the one before.

    rankcast rollout create demo 2 --stages 1% 10% 100% --every-s 86400

    rankcast rollout create demo 2 --group eu --max-failed 3 --window 01:00-05:00

    Create it before you publish the version: it waits for it, and no device takes it too early.
    Without --every-s you begin each further stage with rankcast rollout advance.
    """

    adapter: tyro.conf.Positional[str]
    """Name of the adapter."""
    version: tyro.conf.Positional[int]
    """Version to bring; the next one may be published later."""
    before: int | None = None
    """Version that devices have until then, and get back; if left out, what the rollout before left
    them with, or the newest older one."""
    group: tuple[str, ...] = ()
    """Groups of devices that it is for; all devices if neither these nor names are given."""
    device: tuple[str, ...] = ()
    """Names of devices that it is for."""
    share: str = "100%"
    """Share of those devices, chosen by their names."""
    stages: tuple[str, ...] = ("1%", "10%", "100%")
    """Rising shares of these devices; each stage has at least one device."""
    every_s: float | None = None
    """Time of a stage until the next begins [s]; by hand if left out."""
    least: str = "80%"
    """Share of a stage's devices that have to have the version before the next begins by itself."""
    max_failed: str = "5%"
    """Count or share of a stage's devices: more that failed in any way halt the rollout, and the
    stage goes back."""
    max_rolled_back: str | None = None
    """The same for devices that took the version before back by themselves."""
    max_refused: str | None = None
    """The same for devices that refused the release."""
    max_unhealthy: str | None = None
    """The same for devices that report later that they do not work with it."""
    max_silent: str | None = None
    """The same for devices that have not asked since they were offered it."""
    silent_after_s: float = _DAY_S
    """Time after which a device counts as silent [s]."""
    window: str | None = None
    """Hours in which devices may change, by the clock of each device's time zone, such as
    01:00-05:00. Going back needs no window."""
    window_days: tuple[str, ...] = ()
    """Days on which the window opens, such as mon tue; every day if left out."""

    def run(self, argv: Sequence[str]) -> int:
        """Begin it, print it and return the exit status."""
        from pydantic import ValidationError

        from rankcast.server.rollouts.bodies import OrderRequest

        published = self._published(self.adapter)
        try:
            wanted = OrderRequest(
                adapter=self.adapter, version=self.version, before=self.before,
                groups=list(self.group), devices=list(self.device), share=self.share,
                stages=list(self.stages), every_s=self.every_s, least=self.least,
                max_failed=self.max_failed, max_rolled_back=self.max_rolled_back,
                max_refused=self.max_refused, max_unhealthy=self.max_unhealthy,
                max_silent=self.max_silent, silent_after_s=self.silent_after_s,
                window=self.window, window_days=list(self.window_days),
            )  # fmt: skip
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            where = field if field == "version" else f"--{field.replace('_', '-')}"
            raise ConfigError(f"{where}: {first['msg']}.") from error
        with self._rollouts() as rollouts:
            before = rollouts.default_before(self.adapter, self.version, published)
            made = rollouts.create(wanted.order(before), time.time(), published)
            self._show(self._body(rollouts, made.number))
        return 0


@dataclass(frozen=True, kw_only=True)
class RolloutStatus(_OnServer):
    """Show a rollout with its stages and failures, or all of them in short.

    rankcast rollout status

    rankcast rollout status 3 --json
    """

    number: tyro.conf.Positional[int | None] = None
    """Number of the rollout; all of them if left out."""

    def run(self, argv: Sequence[str]) -> int:
        """Print it and return the exit status."""
        with self._rollouts() as rollouts:
            if self.number is not None:
                self._show(self._body(rollouts, self.number))
                return 0
            bodies = [self._body(rollouts, rollout.number) for rollout in rollouts.all()]
        if self.json:
            print_json([body.model_dump(mode="json") for body in bodies])
            return 0
        for body in bodies:
            print(_line(body))
        if not bodies:
            print("No rollouts yet: devices take the newest release.")
        return 0


@dataclass(frozen=True, kw_only=True)
class _OnRollout(_OnServer):
    number: tyro.conf.Positional[int]
    """Number of the rollout."""
    reason: str = ""
    """Reason, for people."""

    ACTION: ClassVar[_Action]

    def run(self, argv: Sequence[str]) -> int:
        """Change it, print it and return the exit status."""
        with self._rollouts() as rollouts:
            adapter = rollouts.get(self.number).order.adapter
            published = self._published(adapter, may_lack=True)
            reason = self.reason or f"{self.ACTION} by hand"
            rollouts.change(self.number, self.ACTION, time.time(), published, reason)
            self._show(self._body(rollouts, self.number))
        return 0


@dataclass(frozen=True, kw_only=True)
class RolloutPause(_OnRollout):
    """Offer the version to no further device; those that have it keep it.

    rankcast rollout pause 3 --reason "support is on leave"
    """

    ACTION: ClassVar[_Action] = "pause"


@dataclass(frozen=True, kw_only=True)
class RolloutResume(_OnRollout):
    """Go on with a rollout that was paused; one that was halted has ended.

    rankcast rollout resume 3
    """

    ACTION: ClassVar[_Action] = "resume"


@dataclass(frozen=True, kw_only=True)
class RolloutAbort(_OnRollout):
    """End a rollout, whatever its state: each of its devices gets the version before back.

    rankcast rollout abort 3 --reason "answers got worse"
    """

    ACTION: ClassVar[_Action] = "abort"


@dataclass(frozen=True, kw_only=True)
class RolloutAdvance(_OnRollout):
    """Begin the next stage now; after the last one, the rollout is done.

    rankcast rollout advance 3
    """

    ACTION: ClassVar[_Action] = "advance"


@dataclass(frozen=True, kw_only=True)
class RolloutPin(_OnServer):
    """Keep a device on a version whatever is rolled out, or let it go.

    rankcast rollout pin pi-7 demo 2

    rankcast rollout pin pi-7 demo
    """

    device: tyro.conf.Positional[str]
    """Name of the device."""
    adapter: tyro.conf.Positional[str]
    """Name of the adapter."""
    version: tyro.conf.Positional[int | None] = None
    """Version to keep; the device is let go if left out."""

    def run(self, argv: Sequence[str]) -> int:
        """Pin it and return the exit status."""
        published = self._published(self.adapter)
        with self._rollouts() as rollouts:
            rollouts.pin(self.device, self.adapter, self.version, published)
        if self.json:
            print_json({"device": self.device, "adapter": self.adapter, "version": self.version})
        elif self.version is None:
            print(f"{self.device} goes with the rollouts of {self.adapter} again.")
        else:
            print(f"{self.device} stays on version {self.version} of {self.adapter}.")
        return 0


class Rollout:
    """Bring a version to devices in stages, and halt where it fails.

    rankcast rollout create demo 2 --stages 1% 10% 100% --every-s 86400

    rankcast rollout status 1

    rankcast rollout abort 1
    """

    COMMANDS: ClassVar = {
        "create": RolloutCreate, "status": RolloutStatus, "pause": RolloutPause,
        "resume": RolloutResume, "advance": RolloutAdvance, "abort": RolloutAbort,
        "pin": RolloutPin,
    }  # fmt: skip


def _line(body: RolloutBody) -> str:
    """Return a rollout in one line."""
    stage = f", stage {body.stage} of {len(body.stages)}"
    if not body.stage:
        stage = " before it began"
    if body.state == "waiting":
        stage = f" until version {body.version} is published"
    why = f": {body.reason}" if body.reason else ""
    return (
        f"{body.number}  {body.adapter} {body.before} -> {body.version}  {body.state}{stage}, "
        f"{body.target}{why}"
    )


def _print(body: RolloutBody) -> None:
    """Print a rollout for people."""
    from rich.console import Console
    from rich.table import Table

    from rankcast.server.rollouts.rollout import percent

    print(_line(body))
    if body.window is not None:
        print(f"Devices change at {body.window} by their own clocks.")
    table = Table("stage", "share", "devices", "have it", "offered", "failed", "begun")
    for number, stage in enumerate(body.stages, start=1):
        began = "yes" if stage.is_begun else ""
        if number == body.stage:
            began = datetime.fromtimestamp(body.stage_began_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        counts = (stage.n_devices, stage.states.get("activated", 0), stage.states.get("offered", 0))
        cells = (f"{count:,}" for count in (*counts, stage.n_failed))
        table.add_row(str(number), percent(stage.share), *cells, began)
    Console().print(table)
    for group, n in body.failures_by_group.items():
        print(f"{n:,} failed in group {group}." if group else f"{n:,} failed in no group.")
    for failed in body.failed:
        print(f"{failed.device}: {failed.state}. {failed.message}".rstrip())
