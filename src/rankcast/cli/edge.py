"""`rankcast edge`: keep an adapter on this device up to date; torch only to read a base model."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rankcast.cli.common import (
    LogFormat,
    device_token,
    logs_json,
    print_json,
    refuse_both,
    stop_on_signal,
)
from rankcast.cli.edge_report import EdgeReport, state_of
from rankcast.errors import ConfigError, RankcastError

if TYPE_CHECKING:
    from numpy.random import Generator

    from rankcast.codec.formats.gguf_architecture import GgufArchitecture
    from rankcast.edge.activate import Activator, Candidate
    from rankcast.edge.advice import RadioLink
    from rankcast.edge.install import SyncResult
    from rankcast.edge.manifests import KeptManifests
    from rankcast.edge.state import DeviceState
    from rankcast.edge.sync import EdgeClient

_STEP_S = 0.2
"""Between two looks whether a pause should end [s]."""
_SHOWN_EVENTS = 10


@dataclass(frozen=True, kw_only=True)
class _DeviceOptions:
    """Options of a device that syncs, once or again and again."""

    server: str
    """Address of the delivery server, such as https://adapters.example; or of a web server that
    hands the store out, https://USER:PASSWORD@HOST/PATH where it asks for a password."""
    adapter: str
    """Name of the adapter."""
    folder: Path
    """Folder for blobs and state; one for each adapter."""
    base_fingerprint: str | None = None
    """Fingerprint of the base model on this device, 64 hexadecimal digits."""
    base_model: Path | None = None
    """The base model, a GGUF or a folder: to take the fingerprint from (without torch for most
    families), for gguf, and where a module travels as a difference."""
    format: Literal["peft", "vllm", "gguf", "rcast"] = "peft"
    """Format to write: peft is a LoRA with a rank for each projection, vllm is padded to one rank,
    gguf is for llama.cpp, rcast is the file as it came."""
    output: Path | None = None
    """Folder of the versions and of `current`, the link to the active one; FOLDER/adapter if left
    out."""
    hook: str | None = None
    """Command that makes a server read the adapter again and checks it, such as "systemctl reload
    llama"; it finds the folder in RANKCAST_ADAPTER. Any status but 0 brings the one before back."""
    hook_timeout_s: float = 60.0
    """Time after which the hook is ended and counts as failed [s]."""
    vllm_url: str | None = None
    """Address of a running vLLM, such as http://127.0.0.1:8000, to load the adapter into by its
    name; instead of a hook."""
    llama_url: str | None = None
    """Address of a running llama-server, such as http://127.0.0.1:8080, to bring the adapter into;
    rankcast edge prepare says how to start it. Its key, if it asks for one, is taken from
    RANKCAST_LLAMA_KEY. With --hook, that command makes it read its adapter files."""
    llama_wait_s: float = 120.0
    """Time for llama-server to fall asleep, or to start again after the hook [s]."""
    root: Path | None = None
    """First root metadata of whoever publishes, if this device has none yet."""
    root_sha256: str | None = None
    """SHA-256 of that root, as rankcast keys init printed it: refuses any other."""
    token: str | None = None
    """The device's token; others on this machine may see it, so prefer --token-file."""
    token_file: Path | None = None
    """File with the device's token."""
    deadline_s: float = 60.0
    """Time for a transfer [s]; what has not arrived by then is resumed the next time."""
    whole: bool = False
    """Activate nothing before all that the deadline allows is here. Otherwise a device without an
    adapter begins with the first chunks if they are known to be nearly as good."""
    max_bps: float | None = None
    """Bandwidth cap [bit/s]."""
    snr_db: float | None = None
    """Received Es/N0 [dB], with --bandwidth-hz; the measured throughput if left out."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]."""
    rate_model: str = "awgn"
    """Rate that a link of that SNR carries, by name."""

    def client(self) -> EdgeClient:
        """Return the device that the options describe.

        Raises:
            ConfigError: half a link, two tokens, or no base model.
        """
        from rankcast.edge import sync
        from rankcast.edge.fetch import FetchSettings
        from rankcast.release import verify

        settings = sync.SyncSettings(
            deadline_s=self.deadline_s,
            progressive=not self.whole,
            radio=self._radio(),
            fetch=FetchSettings(max_bps=self.max_bps),
        )
        token, fingerprints = device_token(self.token, self.token_file), self._fingerprints()
        source = verify.signed_source(
            self.server, self.folder, token=token, root=self.root, root_sha256=self.root_sha256
        )
        return sync.EdgeClient(
            self.server, self.adapter, fingerprints, self.folder, source,
            self._activator(fingerprints), settings=settings, token=token,
        )  # fmt: skip

    def place(self) -> str:
        """Return where the active adapter is: a path, or the address of the engine that has it."""
        if self.vllm_url or self.llama_url:
            return str(self.vllm_url or self.llama_url)
        file = {"rcast": "adapter.rcast", "gguf": "adapter.gguf"}.get(self.format, "")
        return str(adapter_folder(self.folder, self.output) / "current" / file)

    def _next_words(self) -> str:
        """Say where the active adapter is, and what to do with it."""
        place = self.place()
        if self.vllm_url or self.llama_url:
            return f"The server at {place} answers with it."
        use = {
            "peft": f"PeftModel.from_pretrained(model, {place!r}) loads it",
            "vllm": f"vllm serve … --enable-lora --lora-modules {self.adapter}={place} loads it",
            "gguf": f"llama-server … --lora {place} loads it",
            "rcast": f"rankcast info {place} shows it",
        }[self.format]
        return f"The adapter: {place}\n{use}; rankcast edge watch keeps it up to date."

    def _radio(self) -> RadioLink | None:
        from rankcast.edge.advice import RadioLink

        if self.snr_db is None and self.bandwidth_hz is None:
            return None
        if self.snr_db is None or self.bandwidth_hz is None:
            raise ConfigError("A link needs --snr-db and --bandwidth-hz.")
        return RadioLink(self.snr_db, self.bandwidth_hz, self.rate_model)

    def _fingerprints(self) -> Sequence[str]:
        """Return the base model's fingerprint, or those that it may have.

        Raises:
            ConfigError: neither it nor the model is named.
            ModelError: the folder holds no whole model.
        """
        if self.base_fingerprint is not None:
            return [self.base_fingerprint]
        if self.base_model is None:
            raise ConfigError(
                "Which base model has this device? Give --base-fingerprint, or its GGUF or folder "
                "with --base-model."
            )
        from rankcast.edge.base import fingerprints_of
        from rankcast.packaging.base_model import base_fingerprints_of_folder

        return fingerprints_of(self.base_model, self.folder, base_fingerprints_of_folder)

    def _activator(self, fingerprints: Sequence[str]) -> Activator:
        from rankcast.edge.engines.folder import WriteAdapter
        from rankcast.edge.engines.vllm import VllmEndpoint
        from rankcast.packaging.base_model import check_fits
        from rankcast.packaging.export import in_full_on

        refuse_both(hook=self.hook, vllm_url=self.vllm_url)
        refuse_both(llama_url=self.llama_url, vllm_url=self.vllm_url)
        target, base = adapter_folder(self.folder, self.output), self.base_model
        if self.vllm_url is not None:
            return VllmEndpoint(self.vllm_url, self.adapter, target)
        try:
            hook = shlex.split(self.hook or "")
        except ValueError as error:
            raise ConfigError(f"--hook cannot be read as a command: {error}.") from error
        if self.llama_url is not None:
            return self._llama_server(self.llama_url, target, fingerprints, hook)
        return WriteAdapter(
            self.format,
            target,
            self._architecture(fingerprints) if self.format == "gguf" else None,
            None if base is None else lambda tensors, header: in_full_on(base, tensors, header),
            hook,
            self.hook_timeout_s,
            lambda h: check_fits(base, h.projections) if base and base.is_dir() else None,
        )

    def _llama_server(
        self, url: str, target: Path, fingerprints: Sequence[str], hook: Sequence[str]
    ) -> Activator:
        from rankcast.edge.engines.llama_api import LlamaApi
        from rankcast.edge.engines.llama_server import LlamaServer
        from rankcast.edge.engines.llama_slots import Slots

        if self.base_model is None or self.base_model.is_dir():
            raise ConfigError(
                "--llama-url needs the GGUF that the server runs: name it with --base-model."
            )
        return LlamaServer(
            LlamaApi(url, api_key=os.environ.get("RANKCAST_LLAMA_KEY")),
            Slots(target, self.adapter, self.base_model),
            self._architecture(fingerprints),
            hook,
            self.hook_timeout_s,
            self.llama_wait_s,
        )

    def _architecture(self, fingerprints: Sequence[str]) -> Callable[[Candidate], GgufArchitecture]:
        """Return what gives the base model's architecture for an adapter.

        Raises:
            ConfigError: no base model was named, or it has no configuration.
        """
        from rankcast.codec.formats.gguf import read_base_config
        from rankcast.edge.base import architecture_on

        base = self.base_model
        if base is None:
            raise ConfigError("GGUF needs to know the base model: name it with --base-model.")
        if not base.is_file():
            read_base_config(base)  # what is missing is said before anything is fetched
        return lambda candidate: architecture_on(base, fingerprints, candidate.manifest)


@dataclass(frozen=True, kw_only=True)
class EdgeSync(_DeviceOptions):
    """Fetch, verify and activate what is new, once; go back by itself if it does not work.

    rankcast edge sync --server https://adapters.example --adapter sst2 --folder /var/lib/sst2
    --base-model models/minilm --token-file token

    Killed or cut off at any moment, it goes on with the next call and asks for no byte twice. The
    exit status is 0 if the newest adapter is active, 1 if it failed its proof.
    """

    json: bool = False
    """Print JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Sync once."""
        result = self.client().sync(retry_rejected=True)
        _print_result(result, self.place(), as_json=self.json)
        if not self.json and result.active is not None:
            print(self._next_words())
        return 0 if result.outcome in ("activated", "up-to-date") else 1


@dataclass(frozen=True, kw_only=True)
class EdgeWatch(_DeviceOptions):
    """Sync again and again until it is stopped.

    rankcast edge watch --server https://adapters.example --adapter sst2 --folder /var/lib/sst2
    --base-model models/minilm --token-file token --every-s 60

    What failed its proof is not tried again by itself; rankcast edge sync does that.
    """

    every_s: float = 60.0
    """Time from the end of a sync to the next [s], drawn between a half and the whole of it."""
    mqtt: str | None = None
    """Broker that rankcast publish --mqtt tells of releases, mqtt://HOST:PORT, or mqtts:// for TLS;
    a message wakes the next sync and decides nothing. User and password in the address, or in
    RANKCAST_MQTT_USER and RANKCAST_MQTT_PASSWORD."""
    mqtt_delay_s: float = 15.0
    """Least time from a message to the sync that it causes [s]: longer than caches keep
    timestamp.json. Messages in between count as one."""
    mqtt_jitter_s: float = 30.0
    """Most that chance adds to it [s], so that not all devices come at once."""
    log_format: LogFormat = "auto"
    """Lines for people, or JSON for machines; auto is text at a terminal and JSON elsewhere."""

    def run(self, argv: Sequence[str]) -> int:
        """Sync until a signal comes."""
        with stop_on_signal("this sync") as stopping:
            self.watch(self.client(), stopping, self.show)
        return 0

    def show(self, result: SyncResult) -> None:
        """Print the result of a sync."""
        _print_result(result, self.place(), as_json=logs_json(self.log_format, sys.stdout))

    def complain(self, message: str) -> None:
        """Print what went wrong."""
        if logs_json(self.log_format, sys.stderr):
            message = json.dumps({"level": "error", "message": message})
        else:
            message = f"rankcast: {message}"
        print(message, file=sys.stderr, flush=True)

    def watch(
        self,
        client: EdgeClient,
        stopping: Callable[[], bool],
        show: Callable[[SyncResult], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Sync until asked to stop; errors are printed and the next sync tries again.

        Args:
            client: the device.
            stopping: says whether to stop.
            show: called with a result that differs from the one before.
            sleep: waits [s].

        Raises:
            ConfigError: a pause that is not positive, no address of a broker, or a missing extra.
        """
        import numpy as np

        if not (self.every_s > 0 and self.mqtt_delay_s >= 0 and self.mqtt_jitter_s >= 0):
            raise ConfigError(
                f"--every-s is positive [s], --mqtt-delay-s and --mqtt-jitter-s are not negative, "
                f"got {self.every_s}, {self.mqtt_delay_s} and {self.mqtt_jitter_s}."
            )
        rng, last = np.random.default_rng(), ""
        with self._news() as has_news:
            while not stopping():
                try:
                    result = client.sync()
                    message = result.message
                    if message != last:
                        show(result)
                except RankcastError as error:
                    message = str(error)
                    if message != last:
                        self.complain(message)
                last = message
                self._pause(has_news, stopping, sleep, rng)

    @contextmanager
    def _news(self) -> Iterator[Callable[[], bool]]:
        """Yield a question, whether a message came; without a broker none ever does."""
        if self.mqtt is None:
            yield lambda: False
            return
        from rankcast.release.notify import Broker, ReleaseListener

        with ReleaseListener(Broker.of(self.mqtt), self.adapter, self.complain) as listener:
            yield listener.has_news

    def _pause(
        self,
        has_news: Callable[[], bool],
        stopping: Callable[[], bool],
        sleep: Callable[[float], None],
        rng: Generator,
    ) -> None:
        """Wait for the next sync; the first message that comes meanwhile may shorten it, once."""
        left_s, is_shortened = self.every_s * rng.uniform(0.5, 1.0), False
        while left_s > 0.0 and not stopping():
            if not is_shortened and has_news():
                is_shortened = True
                left_s = min(left_s, self.mqtt_delay_s + self.mqtt_jitter_s * rng.uniform())
                continue
            sleep(min(_STEP_S, left_s))
            left_s -= _STEP_S


@dataclass(frozen=True, kw_only=True)
class EdgePrepare:
    """Write the adapter files that a llama-server is started with, and say how to start it.

    rankcast edge prepare --adapter demo --folder /var/lib/demo --base-model models/gemma.gguf

    The two files change nothing until rankcast edge sync --llama-url brings a release into them.
    Files that are there already stay.
    """

    adapter: str
    """Name of the adapter."""
    folder: Path
    """Folder for blobs and state; the same as for rankcast edge sync."""
    base_model: Path
    """GGUF of the base model that the server runs."""
    output: Path | None = None
    """Folder of the two files; FOLDER/adapter if left out."""
    sleep_idle_seconds: int = 5
    """Idle time after which the server sleeps, and reads the files as it wakes [s]."""
    json: bool = False
    """Print JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the files and print the command."""
        from rankcast.edge.engines.llama_server import start_command
        from rankcast.edge.engines.llama_slots import SLOTS, Slots
        from rankcast.release.manifest import checked_name

        target = adapter_folder(self.folder, self.output)
        slots = Slots(target, checked_name(self.adapter), self.base_model)
        slots.prepare()
        command = start_command(slots, self.sleep_idle_seconds)
        if self.json:
            files = [str(slots.path(slot)) for slot in SLOTS]
            print_json({"files": files, "command": command})
        else:
            print(command)
        return 0


@dataclass(frozen=True, kw_only=True)
class EdgeStatus:
    """Show the active adapter, what went wrong, and what happened.

    rankcast edge status --folder /var/lib/sst2
    """

    folder: Path
    """The folder of rankcast edge sync."""
    json: bool = False
    """Print the state as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the state."""
        from rankcast.edge.manifests import KeptManifests

        state, manifests = state_of(self.folder), KeptManifests(self.folder / "manifests")
        if self.json:
            print_json(state.to_plain() | {"file_chunks": manifests.n_chunks(state.active)})
        else:
            _show_state(state, manifests)
        return 0


class Edge:
    """Keep an adapter on this device up to date.

    rankcast edge sync --server URL --adapter NAME --folder FOLDER --base-model MODEL

    rankcast edge status --folder FOLDER
    """

    COMMANDS: ClassVar[dict[str, type[Any]]] = {
        "sync": EdgeSync,
        "watch": EdgeWatch,
        "prepare": EdgePrepare,
        "status": EdgeStatus,
        "report": EdgeReport,
    }


def adapter_folder(folder: Path, output: Path | None) -> Path:
    """Return where a device writes adapters."""
    return folder / "adapter" if output is None else output


def _print_result(result: SyncResult, place: str, *, as_json: bool) -> None:
    if as_json:
        active, plain = result.active, asdict(result)
        del plain["active"]
        plain["release"] = None if active is None else active.to_plain()
        plain["place"] = None if active is None else place
        print(json.dumps(plain), flush=True)
        return
    came = f" {result.n_bytes:,} bytes in {result.elapsed_s:.2f} s." if result.n_bytes else ""
    print(f"{result.outcome}: {result.message}{came}", flush=True)


def _show_state(state: DeviceState, manifests: KeptManifests) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for role, prefix in (("active", state.active), ("before", state.previous)):
        if prefix is None:
            console.print(f"{state.adapter}, {role}: none.")
            continue
        worth = "" if prefix.loss is None else f", expected {prefix.measure} {prefix.loss:.4f}"
        console.print(
            f"{state.adapter}, {role}: version {prefix.version}, file {prefix.file_index}, "
            f"{prefix.n_chunks} of {manifests.n_chunks(prefix) or 'unknown'} chunks{worth}."
        )
    rate = "not measured" if state.throughput_bps is None else f"{state.throughput_bps:,.0f} bit/s"
    console.print(f"Now: {state.phase}. Throughput: {rate}.")
    if state.last_error is not None:
        console.print(f"Last error, {state.last_error.at}: {state.last_error.message}")
        console.print(state.last_error.remedy)
    table = Table("when", "what", "", box=box.SIMPLE)
    for event in state.history[-_SHOWN_EVENTS:]:
        table.add_row(event.at, event.kind, event.message)
    console.print(table)
