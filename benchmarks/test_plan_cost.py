"""What a plan costs a server: every look an event or not, and limits of a process or of all.

One process, SQLite, no sockets: the app is called as its server calls it, for 500 devices in turn,
each of which holds everything already. The variants take turns in rounds, so that whatever else the
machine does hits all alike. CPU time of a call, and bytes that the database grew by. Run it alone
with `python benchmarks/test_plan_cost.py`; what came out lies in `results/plan_cost.json`.
"""

from __future__ import annotations

import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

RESULTS = Path(__file__).parent / "results" / "plan_cost.json"
N_DEVICES, ROUNDS = 500, 12
EVENTS, LOOKS, SHARED, LEASED = (
    "every look an event, limits of the process",
    "looks, limits of the process",
    "looks, limits of all servers",
    "looks, limits of all servers, a lease for every call",
)
VARIANTS = {EVENTS: (0.0, "process"), LOOKS: (86400.0, "process"),
            SHARED: (86400.0, "shared"), LEASED: (86400.0, "leased")}  # fmt: skip


class Site:
    """A server, its devices, and what each asks."""

    def __init__(self, folder: Path, look_event_s: float, limits: str, n_devices: int) -> None:
        from helpers.stores import FINGERPRINT, store_with
        from rankcast.rate_limit import Buckets, Rate
        from rankcast.server.app import create_app
        from rankcast.server.settings import ServerSettings

        self.database = folder / "devices.db"
        # 10 and 50 in service; here a device may call without end, and a lease is 5 or 1
        rate = Rate(1e6, 9.0 if limits == "leased" else 1e6)
        settings = ServerSettings(
            database=f"sqlite:///{self.database}", look_event_s=look_event_s, calls=rate
        )
        self.app = create_app(store_with(folder / "store"), settings)
        self.server = self.app.state.server
        if limits == "process":
            object.__setattr__(self.server, "calls", Buckets(rate))
        tokens = [self.server.registry.add(f"pi-{n}") for n in range(n_devices)]
        release = next(iter(self.server.releases.current().values()))
        held = [blob.sha256 for blob in release.manifest.blobs]
        question = {
            "adapter": "sst2", "base_fingerprint": FINGERPRINT, "held": held,
            "link": {"throughput_bps": 1e6}, "deadline_s": 60.0,
        }  # fmt: skip
        self.body = json.dumps(question).encode()
        self.heads = [
            [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json"),
             (b"content-length", str(len(self.body)).encode())]
            for token in tokens
        ]  # fmt: skip

    async def ask(self, heads: list[tuple[bytes, bytes]]) -> None:
        """Let one device ask for a plan."""
        waiting = [{"type": "http.request", "body": self.body, "more_body": False}]
        status = 0

        async def receive() -> Any:
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": "/v1/plan", "raw_path": b"/v1/plan", "query_string": b"", "root_path": "",
            "scheme": "http", "headers": heads, "client": ("10.0.0.1", 1), "server": ("a", 80),
        }  # fmt: skip
        await self.app(scope, receive, send)
        assert status == 200, status

    async def round(self) -> float:
        """Let every device look once; return the CPU time of a call [s], its writes included."""
        began_s = time.process_time()
        for heads in self.heads:
            await self.ask(heads)
        self.server.looks.write()
        return (time.process_time() - began_s) / len(self.heads)

    def n_bytes(self) -> int:
        """Return the size of the database, once its log is written back."""
        import sqlite3

        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return self.database.stat().st_size


async def measure(n_devices: int = N_DEVICES, rounds: int = ROUNDS) -> dict[str, Any]:
    with ExitStack() as stack:
        sites = {}
        for name, (look_event_s, limits) in VARIANTS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sites[name] = Site(folder, look_event_s, limits, n_devices)
            stack.callback(sites[name].server.registry.close)
            await sites[name].round()  # the first plan of each is an event
        before = {name: site.n_bytes() for name, site in sites.items()}
        cost_s: dict[str, list[float]] = {name: [] for name in sites}
        for number in range(rounds):
            order = list(sites) if number % 2 else list(reversed(sites))
            for name in order:
                cost_s[name].append(await sites[name].round())
        grown = {name: sites[name].n_bytes() - before[name] for name in sites}
    n = n_devices * rounds
    found = {
        name: {
            "cpu_us": round(1e6 * statistics.median(times), 1),
            "cpu_us_least": round(1e6 * min(times), 1),
            "beside_events": ratio(times, cost_s[EVENTS]),
            "beside_looks": ratio(times, cost_s[LOOKS]),
            "database_bytes_for_each_look": round(grown[name] / n, 1),
        }
        for name, times in cost_s.items()
    }
    return {"variants": found, "devices": n_devices, "rounds": rounds}


def ratio(times: list[float], others: list[float]) -> float:
    """Return the median over rounds of the ratio of both."""
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 3)


def test_a_look_writes_little_and_shared_limits_cost_little() -> None:
    found = asyncio.run(measure(50, 6))["variants"]
    assert found[EVENTS]["database_bytes_for_each_look"] > 200
    assert found[LOOKS]["database_bytes_for_each_look"] < 50
    assert found[SHARED]["beside_looks"] < 1.25


if __name__ == "__main__":
    measured = {
        **asyncio.run(measure()),
        "machine": f"{platform.processor() or platform.machine()}, one core",
        "python": platform.python_version(),
        "command": "python benchmarks/test_plan_cost.py",
    }
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    print(json.dumps(measured, indent=2))
