"""Many devices that decide as real ones do, against apps in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from helpers.edge import BASE
from helpers.releases import container
from helpers.stores import lay_out
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.edge.assigned import ask_assigned, assigned_manifest
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.manifests import KeptManifests
from rankcast.edge.report import report_unhealthy
from rankcast.edge.state import DeviceState, ReleasePrefix, read_state
from rankcast.edge.sync import EdgeClient, Runtime
from rankcast.release.http import http_client
from rankcast.release.manifest import File, Manifest, Older
from rankcast.release.store import Store


def publish_version(
    store: Store, before: Manifest | None, seed: int, name: str = "demo"
) -> Manifest:
    """Lay out the next release of an adapter, which lists those before it; return its manifest."""
    packed = container(seed)
    for data in (header_bytes(packed.header), *packed.chunks):
        store.put(data)
    older: tuple[Older, ...] = ()
    version = 1
    if before is not None:
        version = before.version + 1
        older = (Older(before.version, store.put(before.listed())), *before.older)
    file = File.of(packed)
    manifest = Manifest("demo", version, BaseModel("tiny", BASE), (file,), {}, older=older)
    lay_out(store, [manifest], version)
    return manifest


class DirectApp:
    """Calls an app without a server around it; its background tasks do not run."""

    def __init__(self, app: Any) -> None:
        self.app, self.loop = app, asyncio.new_event_loop()

    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        path, _, query = url.partition("?")
        raw = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "headers": raw,
            "scheme": "http", "server": ("cloud", 80), "client": ("device", 1), "root_path": "",
        }  # fmt: skip
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.app(scope, receive, send))
        answered = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return sent[0]["status"], answered, b"".join(m.get("body", b"") for m in sent[1:])

    def close(self) -> None:
        self.app.state.server.registry.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class AppTransport(httpx2.BaseTransport):
    """Takes requests of a device to an app in this process, which `app` names."""

    def __init__(
        self, app: Callable[[], DirectApp], loses_reports: Callable[[], bool] = lambda: False
    ) -> None:
        self.app, self.loses_reports = app, loses_reports

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/report" and self.loses_reports():
            raise httpx2.ConnectError("lost on purpose", request=request)
        url = request.url.raw_path.decode()
        headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
        status, answered, body = self.app().ask(request.method, url, headers, request.read())
        return httpx2.Response(
            status, headers=answered, stream=httpx2.ByteStream(body), request=request
        )


class SimulatedDevice:
    """Asks, chooses among signed versions and reports as a real device does, without any bytes.

    Attributes:
        active: version that it answers with.
        versions: all that it ever answered with.
        sick: versions with which its health check fails.
        loses_reports: whether none of its reports arrives.
    """

    def __init__(
        self, app: Callable[[], DirectApp], token: str, kept: KeptManifests, sick: Iterable[int]
    ) -> None:
        self.http = http_client(token, "http://cloud", AppTransport(app))
        self.kept, self.sick, self.loses_reports = kept, set(sick), False
        self.active: int | None = 1
        self.versions: set[int] = set()
        self.rejected: tuple[str, ...] = ()

    def sync(self, newest: Manifest) -> None:
        """Take the version that the server says, and put the one before back if it is sick."""
        told = ask_assigned(self.http, newest.name, self.active, self.rejected)
        if told.holds:
            return
        nothing: Any = None  # every manifest is here
        manifest = assigned_manifest(
            newest, told, self.kept, cache=nothing, fetcher=nothing, deadline_s=1.0
        )
        label = ReleasePrefix.of(manifest, 0, 1).label
        if manifest.version == self.active or label in self.rejected:
            return
        self.versions.add(manifest.version)
        is_well = manifest.version not in self.sick
        if is_well:
            self.active = manifest.version
        else:
            self.rejected = (*self.rejected, label)
        if not self.loses_reports:
            self.report(manifest, "activated" if is_well else "rolled-back")

    def report(self, manifest: Manifest, event: str) -> None:
        """Tell the server."""
        body = {"adapter": manifest.name, "version": manifest.version, "ladder": 0, "n_rungs": 1,
                "event": event, "message": f"{event} {manifest.version}"}  # fmt: skip
        assert self.http.post("v1/report", json=body).status_code == 204


class RealDevice:
    """Does all that a device does, in a folder; only signatures and sockets are left out.

    Attributes:
        versions: all that it ever tried.
        sick: versions with which its health check fails.
        loses_reports: whether none of its reports arrives.
    """

    def __init__(
        self, app: Callable[[], DirectApp], token: str, folder: Path, sick: Iterable[int]
    ) -> None:
        self.token, self.folder, self.sick, self.loses_reports = token, folder, set(sick), False
        self.versions: set[int] = set()
        self.newest: Manifest | None = None
        self.transport = AppTransport(app, lambda: self.loses_reports)
        self.client = EdgeClient(
            "http://cloud", "demo", BASE, folder / "state", self,
            WriteAdapter("rcast", folder / "adapter"), token=token, health=self.is_well,
            runtime=Runtime(np.random.default_rng(0), transport=self.transport),
        )  # fmt: skip

    def manifest(self, name: str) -> Manifest:
        """Stand in for signed metadata."""
        assert self.newest is not None
        assert name == self.newest.name
        return self.newest

    @property
    def state(self) -> DeviceState:
        """As it lies on the disk."""
        state = read_state(self.folder / "state")
        assert state is not None
        return state

    @property
    def active(self) -> int | None:
        """Version that it answers with."""
        return None if self.state.active is None else self.state.active.version

    @property
    def file(self) -> bytes:
        """The file that it answers with."""
        return (self.folder / "adapter" / "current" / "adapter.rcast").read_bytes()

    def is_well(self) -> bool:
        """Return whether it works with the version that is being activated."""
        pending = self.state.pending
        assert pending is not None
        self.versions.add(pending.version)
        return pending.version not in self.sick

    def sync(self, newest: Manifest) -> None:
        """Do what `rankcast edge watch` does again and again."""
        self.newest = newest
        self.client.sync()

    def report_unhealthy(self, reason: str) -> None:
        """Do what `rankcast edge report unhealthy` does."""
        with http_client(self.token, "http://cloud", self.transport) as http:
            report_unhealthy(http, self.state, reason)


@dataclass
class SimulatedClock:
    """Seconds since 1970, moved by hand."""

    now_s: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now_s
