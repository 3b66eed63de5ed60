"""The state of a device in a file that a person can read.

`state.json` is replaced in one step at every change. Beside it, `releases/LABEL.json` says of every
release that was or is to be active which blobs it consists of; a state file that was damaged is
rebuilt from those.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rankcast.delivery.edge.durable import write_durably
from rankcast.delivery.edge.records import DeviceState, Release
from rankcast.errors import DeliveryError


def utc_now() -> str:
    """Return date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class StateFile:
    """The state of one adapter in a folder.

    Attributes:
        folder: that holds `state.json` and `releases`.
        now: gives date and time in UTC.
    """

    folder: Path
    now: Callable[[], str] = utc_now

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "state.json"

    def load(self) -> DeviceState | None:
        """Return the state; None if there is none.

        Raises:
            DeliveryError: the file cannot be understood.
        """
        try:
            return DeviceState.from_plain(json.loads(self.path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, DeliveryError, RecursionError) as error:
            raise DeliveryError(
                f"{self.path} is damaged ({error!r}). The next sync sets it aside and rebuilds it."
            ) from error

    def save(self, state: DeviceState) -> None:
        """Replace the file.

        Raises:
            UnavailableError: the disk does not take it.
        """
        write_durably(self.path, (json.dumps(asdict(state), indent=2) + "\n").encode())

    def record(self, release: Release) -> None:
        """Write down what a release consists of, before it can become active.

        Raises:
            UnavailableError: the disk does not take it.
        """
        path = self.folder / "releases" / f"{release.label}.json"
        write_durably(path, (json.dumps(asdict(release), indent=2) + "\n").encode())

    def forget(self, keep: set[str]) -> None:
        """Drop the records of all releases but those with the labels to keep."""
        for path in sorted((self.folder / "releases").glob("*.json")):
            if path.stem not in keep:
                path.unlink(missing_ok=True)

    def rebuild(self, adapter: str, active_label: str | None) -> DeviceState:
        """Set a damaged file aside and return the state that the rest of the folder tells.

        What the activator says is active is proved again; the newest other release is what to go
        back to. Without a file and without releases, the device is a new one.

        Args:
            adapter: name of the adapter.
            active_label: of the release that is in force, if anybody knows.
        """
        records = sorted(self._records(adapter), key=lambda r: (r.version, r.n_rungs))
        aside = self.path.with_name("state.damaged.json")
        if self.path.exists():
            self.path.replace(aside)
        elif not records:
            return DeviceState(adapter)
        current = next((r for r in records if r.label == active_label), None)
        current = current or (records[-1] if records else None)
        others = [r for r in records if current is not None and r.label != current.label]
        state = DeviceState(
            adapter,
            phase="idle" if current is None else "activating",
            active=others[-1] if others else None,
            pending=current,
            newest_version=max((r.version for r in records), default=0),
        )
        found = "nothing" if current is None else current.label
        return state.with_event(
            "rebuilt", f"The state was damaged or lost (see {aside.name}); found {found}.",
            self.now(),
        )  # fmt: skip

    def _records(self, adapter: str) -> list[Release]:
        found = []
        for path in (self.folder / "releases").glob("*.json"):
            try:
                release = Release.from_plain(json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, KeyError, TypeError, DeliveryError):
                continue
            if release.name == adapter and release.label == path.stem:
                found.append(release)
        return found
