"""A small delivery server with faults to order, releases to deliver, and a device to deliver to."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from helpers.codec import packed, random_adapter
from helpers.waiting import DEADLOCK_S, in_background
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.fetch import FetchSettings
from rankcast.edge.sync import EdgeClient, Runtime, SyncSettings
from rankcast.errors import DeliveryError
from rankcast.files import replace_file
from rankcast.release.manifest import Blob, File, Manifest
from rankcast.release.plan import plan_fetch
from rankcast.release.store import Store
from rankcast.release.updates import with_updates
from rankcast.release.verify import SeenReleases

BASE = "0" * 64
SILENCE_S = DEADLOCK_S


@dataclass
class Faults:
    """What the server does wrong; each entry of a list is used up by one answer.

    Attributes:
        reset_after: bytes after which the connection is reset.
        after_reset: statuses to answer with after the next reset.
        statuses: to answer with.
        wrong_bytes: SHA-256 of blobs of which other bytes are sent.
        endless: whether bodies do not end.
        no_range: whether Range is ignored.
        wrong_range: answers whose Content-Range is off by one.
        slow_s: pause between blocks of 64 bytes.
        plan: answer of `/v1/plan`; None for a good one.
    """

    reset_after: list[int] = field(default_factory=list)
    after_reset: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    wrong_bytes: set[str] = field(default_factory=set)
    endless: bool = False
    no_range: bool = False
    wrong_range: int = 0
    slow_s: float = 0.0
    plan: Any = None


class EdgeServer(ThreadingHTTPServer):
    """Hands out the blobs of a store.

    Attributes:
        requests: (path, first byte asked for) of every blob's request.
        sent: how often each byte of each blob went out.
        reports: bodies of `/v1/report`.
        asked: bodies of `/v1/plan`.
        assigned: what it answers of the version, a status or a body; 404 as by a plain server.
        questions: of the version.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store, self.faults = Store(root / "store"), Faults()
        self.manifest_file = root / "manifest.json"
        self.requests: list[tuple[str, int]] = []
        self.sent: Counter[str] = Counter()
        self.reports: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.assigned: int | dict[str, Any] = 404
        self.questions: list[str] = []
        self.tokens: set[str | None] = set()
        self.stopping = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests hang up on purpose."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def publish(
        self,
        *containers: Container,
        name: str = "demo",
        version: int = 1,
        older: Sequence[Manifest] = (),
    ) -> Manifest:
        blobs = [(header_bytes(c.header), *c.chunks) for c in containers]
        for data in (data for file in blobs for data in file):
            self.store.put(data)
        files = tuple(File.of(container) for container in containers)
        base = BaseModel("tiny", containers[0].header.base.fingerprint)
        manifest = Manifest(name, version, base, files, dict(containers[0].header.task))
        manifest = with_updates(self.store, manifest, blobs, older)
        replace_file(self.manifest_file, lambda file: file.write_bytes(manifest.to_bytes()))
        return manifest


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EdgeServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        server, faults = self.server, self.server.faults
        if self.path.startswith("/v1/"):
            server.questions.append(self.path)
            told = server.assigned
            body = b"{}" if isinstance(told, int) else json.dumps(told).encode()
            self._answer(told if isinstance(told, int) else 200, body)
            return
        sha256 = self.path.rpartition("/")[2]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not faults.no_range else 0
        server.requests.append((sha256, int(asked[1]) if asked else 0))
        server.tokens.add(self.headers.get("Authorization"))
        path = server.store.root / "blobs" / sha256[:2] / sha256
        if faults.statuses or not path.is_file():
            self._answer(faults.statuses.pop(0) if faults.statuses else 404, b"{}")
            return
        data = path.read_bytes()
        if sha256 in faults.wrong_bytes:
            data = bytes(255 - b for b in data)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{sha256}"')
        if start:
            first = start + (1 if faults.wrong_range else 0)
            faults.wrong_range = max(0, faults.wrong_range - 1)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if faults.endless:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self._send(sha256, data[start:])

    def _send(self, sha256: str, body: bytes) -> None:
        server, faults = self.server, self.server.faults
        reset = faults.reset_after.pop(0) if faults.reset_after else None
        body = body[:reset]
        step = 64 if faults.slow_s else max(1, len(body))
        for i in range(0, len(body), step):
            self.wfile.write(body[i : i + step])
            server.sent[sha256] += len(body[i : i + step])
            if faults.slow_s:
                time.sleep(faults.slow_s)
        if reset is not None:
            faults.statuses, faults.after_reset = faults.statuses + faults.after_reset, []
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0) if reset % 2 else struct.pack("ii", 0, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)
        while faults.endless and not server.stopping.is_set():
            self.wfile.write(b"more" * 1024)

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/report":
            server.reports.append(body)
            self._answer(204, b"")
            return
        server.asked.append(body)
        if server.faults.plan is not None:
            self._answer(200, json.dumps(server.faults.plan).encode())
            return
        manifest = Manifest.from_bytes(server.manifest_file.read_bytes())
        bps = body["link"].get("throughput_bps", 1e9)
        plan = plan_fetch(manifest, bps * body["deadline_s"], set(body["held"]))
        answer = {
            "adapter": manifest.name, "version": manifest.version, "ladder": plan.file_index,
            "n_rungs": plan.n_chunks, "bits": plan.bits, "loss": plan.loss,
            "accuracy": plan.accuracy,
            "blobs": [{"sha256": b.sha256, "n_bytes": b.n_bytes} for b in plan.missing],
        }  # fmt: skip
        self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(root: Path) -> Iterator[EdgeServer]:
    server = EdgeServer(root)
    with in_background(server):
        try:
            yield server
        finally:
            server.stopping.set()


@dataclass(frozen=True)
class FileSource:
    """Trusts a file; stands in for signed metadata.

    Attributes:
        file: the manifest.
        seen: where to remember releases, so that it never goes back; None to take any.
    """

    file: Path
    seen: Path | None = None

    def manifest(self, name: str) -> Manifest:
        try:
            manifest = Manifest.from_bytes(self.file.read_bytes())
        except OSError as error:
            raise DeliveryError(f"No release of {name}.") from error
        if self.seen is not None:
            SeenReleases(self.seen).check(manifest)
        return manifest


class FakeTime:
    """A clock that only runs while somebody sleeps, and by a tick at every look."""

    def __init__(self, tick_s: float = 0.001) -> None:
        self.now, self.tick_s = 0.0, tick_s
        self.slept: list[float] = []

    def clock(self) -> float:
        self.now += self.tick_s
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def release_of(seed: int, *, measured: bool = False, finest: int = -36) -> Container:
    """Return a container of 6 chunks, about 4 kB."""
    widths = ((64, 64), (64, 128), (128, 64))
    container = packed(random_adapter(seed, widths, (6, 6, 6), size=0.3), finest)
    if not measured:
        return container
    entries = tuple(
        replace(entry, loss=1.0 / (n + 1), accuracy=0.5 + 0.05 * n)
        for n, entry in enumerate(container.header.chunks)
    )
    return Container(replace(container.header, chunks=entries), container.chunks)


def settings(**changes: Any) -> SyncSettings:
    return SyncSettings(**({"fetch": FetchSettings(silence_s=SILENCE_S)} | changes))


def client_of(server: EdgeServer, folder: Path, base: str = BASE, **changes: Any) -> EdgeClient:
    """Return a device that writes adapters as they came."""
    faked = FakeTime()
    runtime = Runtime(np.random.default_rng(0), faked.clock, faked.sleep, lambda: "now")
    given: dict[str, Any] = {
        "source": FileSource(server.manifest_file, folder / "seen.json"),
        "activator": WriteAdapter("rcast", folder / "adapter"),
        "settings": settings(),
        "runtime": runtime,
    }
    return EdgeClient(server.url, "demo", base, folder / "state", **(given | changes))


def active_file(folder: Path) -> bytes | None:
    """Return the file of the active adapter."""
    file = folder / "adapter" / "current" / "adapter.rcast"
    return file.read_bytes() if file.exists() else None


def biggest(manifest: Manifest) -> Blob:
    return max(manifest.blobs, key=lambda blob: blob.n_bytes)
