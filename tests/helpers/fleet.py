"""Many devices that decide as real ones do, against apps in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from helpers.edge import BASE
from helpers.releases import container
from helpers.stores import lay_out
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.edge.assigned import ask_assigned, assigned_manifest
from rankcast.edge.manifests import KeptManifests
from rankcast.edge.state import ReleasePrefix
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

    def __init__(self, app: Callable[[], DirectApp]) -> None:
        self.app = app

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
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


@dataclass
class SimulatedClock:
    """Seconds since 1970, moved by hand."""

    now_s: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now_s
