"""`rankcast rollout`: bring a version to devices in stages, and halt where it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from rankcast.cli.common import open_registry, print_json
from rankcast.errors import ConfigError, nearest
from rankcast.server import DEFAULT_DATABASE

if TYPE_CHECKING:
    from rankcast.server.rollouts.bodies import RolloutBody
    from rankcast.server.rollouts.database import Rollouts
    from rankcast.server.rollouts.decide import Published
    from rankcast.server.rollouts.rollout import Rollout as Ordered

_DAY_S = 86400.0
_OPTIONS = {"groups": "group", "devices": "device"}
"""Options with another name than the field of a request."""
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
        from rankcast.server.rollouts.database import Rollouts

        with closing(open_registry(self.database)) as registry:
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
            known = f"; it has {', '.join(sorted(releases)) or 'none'}."
            hint = nearest(adapter, releases) or known
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
        options = {field: _OPTIONS.get(field, field) for field in OrderRequest.model_fields}
        given = {field: getattr(self, option) for field, option in options.items()}
        try:
            wanted = OrderRequest.model_validate(
                {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
            )
        except ValidationError as error:
            first = error.errors()[0]
            option = options[str(first["loc"][0])]
            where = option if option == "version" else f"--{option.replace('_', '-')}"
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

    number: tyro.conf.Positional[str | None] = None
    """Number of the rollout, or an adapter's name for its newest; all of them if left out."""

    def run(self, argv: Sequence[str]) -> int:
        """Print it and return the exit status."""
        with self._rollouts() as rollouts:
            if self.number is not None:
                self._show(self._body(rollouts, _named(rollouts, self.number).number))
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
    number: tyro.conf.Positional[str]
    """Number of the rollout, or an adapter's name for its newest."""
    reason: str = ""
    """Reason, for people."""

    ACTION: ClassVar[_Action]

    def run(self, argv: Sequence[str]) -> int:
        """Change it, print it and return the exit status."""
        with self._rollouts() as rollouts:
            rollout = _named(rollouts, self.number)
            published = self._published(rollout.order.adapter, may_lack=True)
            reason = self.reason or f"{self.ACTION} by hand"
            rollouts.change(rollout.number, self.ACTION, time.time(), published, reason)
            self._show(self._body(rollouts, rollout.number))
        return 0


_CHANGES: Mapping[_Action, str] = {
    "pause": """Offer the version to no further device; those that have it keep it.

    rankcast rollout pause 3 --reason "support is on leave"
    """,
    "resume": """Go on with a rollout that was paused; one that was halted has ended.

    rankcast rollout resume 3
    """,
    "advance": """Begin the next stage now; after the last one, the rollout is done.

    rankcast rollout advance 3
    """,
    "abort": """End a rollout, whatever its state: each of its devices gets the version before back.

    rankcast rollout abort 3 --reason "answers got worse"
    """,
}
"""What an operator can do to a rollout, and the help of that command."""


@dataclass(frozen=True, kw_only=True)
class RolloutUnpin(_OnServer):
    """Let a device that was pinned go with the rollouts again.

    rankcast rollout unpin pi-7 demo

    The store need not have the adapter any more.
    """

    device: tyro.conf.Positional[str]
    """Name of the device."""
    adapter: tyro.conf.Positional[str]
    """Name of the adapter."""

    def run(self, argv: Sequence[str]) -> int:
        """Let it go and return the exit status."""
        return self._keep_on(None)

    def _keep_on(self, version: int | None) -> int:
        with self._rollouts() as rollouts:
            if version is not None:
                published = self._published(self.adapter)
                rollouts.pin(self.device, self.adapter, version, published)
            elif rollouts.unpin(self.device, self.adapter) is None:
                self._published(self.adapter)  # a name that was mistyped is said
        if self.json:
            print_json({"device": self.device, "adapter": self.adapter, "version": version})
        elif version is None:
            print(f"{self.device} goes with the rollouts of {self.adapter} again.")
        else:
            print(f"{self.device} stays on version {version} of {self.adapter}.")
        return 0


@dataclass(frozen=True, kw_only=True)
class RolloutPin(RolloutUnpin):
    """Keep a device on a version whatever is rolled out, until rankcast rollout unpin.

    rankcast rollout pin pi-7 demo 2
    """

    version: tyro.conf.Positional[int | None] = None
    """Version to keep; the device is let go if left out."""

    def run(self, argv: Sequence[str]) -> int:
        """Pin it and return the exit status."""
        return self._keep_on(self.version)


class Rollout:
    """Bring a version to devices in stages, and halt where it fails.

    rankcast rollout create demo 2 --stages 1% 10% 100% --every-s 86400

    rankcast rollout status 1

    rankcast rollout abort 1
    """

    COMMANDS: ClassVar[dict[str, type[Any]]] = {
        "create": RolloutCreate,
        "status": RolloutStatus,
        **{
            action: type(
                f"Rollout{action.capitalize()}", (_OnRollout,), {"__doc__": words, "ACTION": action}
            )
            for action, words in _CHANGES.items()
        },
        "pin": RolloutPin,
        "unpin": RolloutUnpin,
    }


def _named(rollouts: Rollouts, word: str) -> Ordered:
    """Return the rollout of a number, or the newest of an adapter.

    Raises:
        ConfigError: there is none; names what there is.
    """
    from rankcast.server.rollouts.database import known_words

    known = rollouts.all()
    newest = {rollout.order.adapter: rollout for rollout in reversed(known)}
    numbered = {str(rollout.number): rollout for rollout in known}
    if word not in numbered and word not in newest:
        hint = nearest(word, newest) or "."
        raise ConfigError(f"There is no rollout {word}{hint} {known_words(known)}")
    return numbered.get(word) or newest[word]


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
