"""`rankcast publish`: what the owner of an adapter does for each release; torch only to plan."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console
from rich.progress import Progress

from rankcast.codec.container import Container
from rankcast.delivery.manifest import Choice, Manifest
from rankcast.delivery.publishing import check_publisher, publish
from rankcast.delivery.store import Store
from rankcast.errors import ConfigError, UnavailableError
from rankcast.run.containers import file_or_packed
from rankcast.run.delivery_options import Publish
from rankcast.run.key_commands import key_folder


def dispatch(command: Publish) -> int:
    """Do what the command says and return the exit status."""
    if not command.files:
        raise ConfigError("Name what to publish: rankcast publish FILE.rcast --name NAME …")
    tell = _herald(command.mqtt)
    keys, store = key_folder(command), Store(command.store)
    if command.planner is not None:
        check_publisher(store, keys, datetime.now(UTC))  # planning takes minutes
    source, choices = _planned(command) if command.planner else _as_they_are(command)
    manifest = publish(
        source, command.name, store, keys, datetime.now(UTC), choices=choices,
        allow_new_base=command.allow_new_base,
    )  # fmt: skip
    n_bytes = sum(blob.n_bytes for blob in manifest.blobs)
    was_told = tell(manifest)
    if command.json:
        found = {
            "name": manifest.name,
            "version": manifest.version,
            "base_model": manifest.base.name,
            "base_fingerprint": manifest.base.fingerprint,
            "ladders": len(manifest.ladders),
            "planner": manifest.planner,
            "bytes": n_bytes,
            "broker_told": was_told,
        }
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    print(  # noqa: T201
        f"{manifest.name} version {manifest.version} is in force: {n_bytes:,} bytes in "
        f"{len(manifest.blobs)} blobs, for {manifest.base.name}."
    )
    return 0


def _as_they_are(command: Publish) -> tuple[list[Container], tuple[Choice, ...]]:
    if command.snr_db or command.bandwidth_hz is not None or command.deadline_s is not None:
        raise ConfigError(
            "--snr-db, --bandwidth-hz and --deadline-s say for which links to plan; say who plans "
            "with --planner policy or --planner solver."
        )
    return [file_or_packed(path) for path in command.files], ()


def _planned(command: Publish) -> tuple[list[Container], tuple[Choice, ...]]:
    if len(command.files) != 1 or not command.files[0].is_dir() or not command.snr_db:
        raise ConfigError("--planner takes one run and its links: RUN --planner policy --snr-db …")
    try:
        from rankcast.run.planned_ladders import planned_ladders  # noqa: PLC0415 needs torch
    except ImportError as error:
        raise ConfigError("--planner needs torch: pip install 'rankcast[train]'.") from error
    assert command.planner is not None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("planning and measuring", total=len(command.snr_db))
        found = planned_ladders(
            command.files[0],
            command.planner,
            command.snr_db,
            bandwidth_hz=command.bandwidth_hz,
            deadline_s=command.deadline_s,
            on_link=lambda done: progress.update(task, completed=done),
        )
    if found.left_out_db:
        links = ", ".join(f"{value:g} dB" for value in found.left_out_db)
        print(f"rankcast: nothing arrives in time at {links}.", file=sys.stderr)  # noqa: T201
    return list(found.containers), found.choices


def _herald(url: str | None) -> Callable[[Manifest], bool]:
    """Return what tells a broker of a release, and returns whether that worked.

    Raises:
        ConfigError: no address of a broker, or a missing extra.
    """
    if url is None:
        return lambda manifest: False  # noqa: ARG005 nobody to tell
    from rankcast.delivery.notices import Broker, connector, notify  # noqa: PLC0415 most do without

    broker = Broker.of(url)
    connector(broker)  # a missing extra is told before anything is published

    def tell(manifest: Manifest) -> bool:
        try:
            notify(broker, manifest.name, manifest.version)
        except UnavailableError as error:
            print(f"rankcast: {error}", file=sys.stderr)  # noqa: T201
            return False
        return True

    return tell
