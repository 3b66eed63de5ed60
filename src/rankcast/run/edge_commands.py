"""`rankcast edge`: an adapter on this device, kept up to date; torch only where a model is read."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from rankcast.errors import ConfigError
from rankcast.run.edge_options import Edge, EdgeStatus, EdgeSync, EdgeWatch
from rankcast.run.signals import stop_on_signal

if TYPE_CHECKING:
    from rankcast.delivery.edge.activation import Activator
    from rankcast.delivery.edge.advice import RadioLink
    from rankcast.delivery.edge.client import EdgeClient
    from rankcast.delivery.edge.records import DeviceState
    from rankcast.delivery.edge.syncing import SyncResult


def dispatch(command: Edge) -> int:
    """Do what a command says and return the exit status."""
    match command.action:
        case EdgeSync() as action:
            result = client_of(action).sync(retry_rejected=True)
            _say(result, as_json=action.json)
            return 0 if result.outcome in ("activated", "up-to-date") else 1
        case EdgeWatch() as action:
            from rankcast.run.watching import watch  # noqa: PLC0415 needs NumPy

            with stop_on_signal("this sync") as stopping:
                return watch(
                    action,
                    client_of(action),
                    stopping,
                    say=lambda result: _say(result, as_json=action.json),
                )
        case EdgeStatus() as action:
            return _status(action)


def client_of(command: EdgeSync | EdgeWatch) -> EdgeClient:
    """Return the device that the options describe.

    Raises:
        ConfigError: half a link, two tokens, or no base model.
    """
    from rankcast.delivery.edge.client import EdgeClient  # noqa: PLC0415 not for --help
    from rankcast.delivery.edge.fetching import FetchSettings  # noqa: PLC0415
    from rankcast.delivery.edge.signed import signed_source  # noqa: PLC0415
    from rankcast.delivery.edge.syncing import SyncSettings  # noqa: PLC0415

    settings = SyncSettings(
        deadline_s=command.deadline_s,
        progressive=not command.whole,
        radio=_radio(command),
        fetch=FetchSettings(max_bps=command.max_bps),
    )
    token = _token(command)
    source = signed_source(
        command.server,
        command.folder,
        token=token,
        root=command.root,
        root_sha256=command.root_sha256,
    )
    return EdgeClient(
        command.server,
        command.adapter,
        _fingerprint(command),
        command.folder,
        source,
        _activator(command),
        settings=settings,
        token=token,
    )


def _say(result: SyncResult, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)), flush=True)  # noqa: T201
        return
    came = f" {result.n_bytes:,} bytes in {result.elapsed_s:.2f} s." if result.n_bytes else ""
    print(f"{result.outcome}: {result.message}{came}", flush=True)  # noqa: T201


def _status(command: EdgeStatus) -> int:
    from rankcast.delivery.edge.state import StateFile  # noqa: PLC0415 not for --help

    state = StateFile(command.folder).load()
    if state is None:
        raise ConfigError(f"{command.folder} is no device's folder: it has no state.json.")
    if command.json:
        print(json.dumps(asdict(state), indent=2))  # noqa: T201
    else:
        _show(state)
    return 0


def _show(state: DeviceState) -> None:
    console = Console(highlight=False)
    for role, release in (("in force", state.active), ("before", state.previous)):
        if release is None:
            console.print(f"{state.adapter}, {role}: none.")
            continue
        worth = "" if release.loss is None else f", expected loss {release.loss:.4f}"
        console.print(
            f"{state.adapter}, {role}: version {release.version}, ladder {release.ladder}, "
            f"{release.n_rungs} chunks{worth}."
        )
    rate = "not measured" if state.throughput_bps is None else f"{state.throughput_bps:,.0f} bit/s"
    console.print(f"Now: {state.phase}. Throughput: {rate}.")
    if state.last_error is not None:
        console.print(f"Last error, {state.last_error.at}: {state.last_error.message}")
        console.print(state.last_error.remedy)
    table = Table("when", "what", "", box=box.SIMPLE)
    for event in state.history[-10:]:
        table.add_row(event.at, event.kind, event.message)
    console.print(table)


def _fingerprint(command: EdgeSync | EdgeWatch) -> str:
    """Return the base model's fingerprint.

    Raises:
        ConfigError: neither it nor the model is named, or the folder holds no model.
    """
    if command.base_fingerprint is not None:
        return command.base_fingerprint
    if command.base_model is None:
        raise ConfigError(
            "Which base model has this device? Give --base-fingerprint, or its folder with "
            "--base-model."
        )
    import transformers  # noqa: PLC0415 takes seconds

    from rankcast.adapters.fingerprint import base_fingerprint  # noqa: PLC0415 needs torch

    try:
        model = transformers.AutoModel.from_pretrained(command.base_model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{command.base_model} holds no base model ({error}).") from error
    return base_fingerprint(model)


def _activator(command: EdgeSync | EdgeWatch) -> Activator:
    from rankcast.delivery.edge.activation import WriteAdapter  # noqa: PLC0415 not for --help
    from rankcast.run.exporting import base_config_of, in_full_on  # noqa: PLC0415

    target = command.folder / "adapter" if command.output is None else command.output
    if command.vllm_url is not None:
        from rankcast.delivery.edge.vllm import VllmEndpoint  # noqa: PLC0415

        if command.hook is not None:
            raise ConfigError("Give a hook or --vllm-url, not both.")
        return VllmEndpoint(command.vllm_url, command.adapter, target)
    base: Path | None = command.base_model
    config: dict[str, Any] | None = None
    if command.format == "gguf" and base is not None:
        config = base_config_of(base)
    return WriteAdapter(
        command.format,
        target,
        None if command.hook is None else tuple(shlex.split(command.hook)),
        command.hook_timeout_s,
        config,
        None if base is None else lambda tensors, header: in_full_on(base, tensors, header),
    )


def _radio(command: EdgeSync | EdgeWatch) -> RadioLink | None:
    from rankcast.delivery.edge.advice import RadioLink  # noqa: PLC0415 not for --help

    if command.snr_db is None and command.bandwidth_hz is None:
        return None
    if command.snr_db is None or command.bandwidth_hz is None:
        raise ConfigError("A link needs --snr-db and --bandwidth-hz.")
    return RadioLink(command.snr_db, command.bandwidth_hz, command.rate_model)


def _token(command: EdgeSync | EdgeWatch) -> str | None:
    if command.token_file is None:
        return command.token
    if command.token is not None:
        raise ConfigError("Give --token or --token-file, not both.")
    try:
        return command.token_file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{command.token_file} cannot be read: {error.strerror}.") from error
