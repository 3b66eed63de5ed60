"""`rankcast edge report`: say after the activation that the adapter does not work here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from rankcast.cli.common import device_token, print_json
from rankcast.errors import ConfigError

if TYPE_CHECKING:
    from rankcast.edge.state import DeviceState


@dataclass(frozen=True, kw_only=True)
class EdgeReport:
    """Tell the server that this device does not work with its active adapter.

    rankcast edge report unhealthy --reason "no answer for 30 s" --server https://adapters.example
    --folder /var/lib/sst2 --token-file token

    For what watches the program that answers with the adapter; it may run beside rankcast edge
    watch. The rollout that brought the version counts the device as failed, and the device's next
    sync brings the version before back. The exit status is 2 if the server did not take the report.
    """

    event: tyro.conf.Positional[Literal["unhealthy"]]
    """What to report."""
    server: str
    """Address of the delivery server; the same as for rankcast edge sync."""
    folder: Path
    """The folder of rankcast edge sync."""
    reason: str
    """What does not work, for whoever looks at the rollout; its first 500 characters are kept."""
    token: str | None = None
    """The device's token; others on this machine may see it, so prefer --token-file."""
    token_file: Path | None = None
    """File with the device's token."""
    json: bool = False
    """Print JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Send the report."""
        from rankcast.edge.report import report_unhealthy
        from rankcast.release.http import http_client

        state, token = state_of(self.folder), device_token(self.token, self.token_file)
        with http_client(token, self.server) as http:
            version = report_unhealthy(http, state, self.reason)
        if self.json:
            print_json({"adapter": state.adapter, "version": version, "event": self.event})
        else:
            print(
                f"The server knows that version {version} of {state.adapter} does not work here. "
                f"If a rollout brought it, the next sync brings the version before back."
            )
        return 0


def state_of(folder: Path) -> DeviceState:
    """Return the state in a device's folder.

    Raises:
        ConfigError: it is no device's folder.
        DeliveryError: its state is damaged.
    """
    from rankcast.edge.state import read_state

    state = read_state(folder)
    if state is None:
        why = "no sync has finished in it" if folder.is_dir() else "it does not exist"
        raise ConfigError(
            f"{folder} is no device's folder yet: {why}. Run rankcast edge sync, or name another."
        )
    return state
