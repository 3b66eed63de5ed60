"""Fifty `rankcast edge sync` over one link, each for itself and as a cell that shares it.

Real processes, a real server, and a proxy behind which all of them share one rate in the order in
which bytes come. Three adapters of 3, 19 and 123 kB; each device wants one of them, begins at a
time and has a deadline, drawn once for both sides. What counts is what lies on a device's disk when
its sync ends, which its deadline forces: the loss removed by its longest complete prefix, with the
loss of having nothing as `rankcast.release.plan.gains` takes it. The losses are made up.

The processes are forked from one that has imported everything. `python
benchmarks/test_cell_rehearsal.py` writes `results/cell_rehearsal.json`; a link takes ten minutes
where one core does everything. `… simulated 0 1` adds the same for some seeds in simulated time:
the server's answers without processes, metadata or waits for the processor.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "cell_rehearsal.json"
TESTS = str(Path(__file__).parents[1] / "tests")
N_DEVICES, SEED = 50, 0
RATES_BPS, CELL_SHARE = {"crowded": 40_000.0, "light": 80_000.0}, 0.9
"""Of the link, and the share of it that the cell may use: metadata and questions take the rest. At
80 kbit/s the link carries nearly all that is wanted, at 40 kbit/s about a third beside metadata."""
STARTS_S, DEADLINES_S = (0.0, 60.0), (60.0, 180.0)
ADAPTERS = {
    "alerts": (((64, 64), (64, 128), (128, 64)), 0.60, 0.30, 0.60),
    "classifier": (((192, 192),) * 8, 0.65, 0.35, 0.70),
    "assistant": (((512, 512),) * 20, 0.68, 0.40, 0.75),
}
"""Widths, the loss of the first and of the last prefix [nats], and how it falls in between."""


def test_no_sync_crashes_and_both_sides_deliver() -> None:
    sys.path.insert(0, TESTS)
    loads = {load: compare(rate_bps) for load, rate_bps in RATES_BPS.items()}
    sides = [side for load in loads.values() for side in load["sides"].values()]
    assert not any(side["crashed"] for side in sides)
    assert all(side["gain_nats"] > 0.0 for side in sides)


def compare(rate_bps: float) -> dict[str, Any]:
    """Rehearse both ways over one link, and add what came to the results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cloud = published(folder, rate_bps)
        sides = {side: rehearse(folder, cloud, side) for side in ("alone", "cell")}
    found = {"link_bps": rate_bps, "cell_bps": CELL_SHARE * rate_bps, "sides": sides}
    earlier = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    result = {
        **earlier,
        "links": [x for x in earlier.get("links", []) if x["link_bps"] != rate_bps] + [found],
        "devices": N_DEVICES,
        "starts_s": STARTS_S,
        "deadlines_s": DEADLINES_S,
        "adapter_bytes": cloud["bytes"],
        "wanted": {name: cloud["wanted"].count(name) for name in ADAPTERS},
        "seed": SEED,
        "machine": f"{platform.machine()}, one core, shared with other work",
        "python": platform.python_version(),
        "command": "python benchmarks/test_cell_rehearsal.py",
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2), flush=True)
    return found


def rehearse(folder: Path, cloud: dict[str, Any], side: str) -> dict[str, Any]:
    """Let all devices sync, and say what they have."""
    from helpers.cells import forking, sync_as_typed
    from helpers.servers import served
    from rankcast.simulation.proxy import DeviceLink, LinkProxy
    from rankcast.simulation.shaping import RateSchedule

    link = DeviceLink.of(RateSchedule(np.array([cloud["rate_bps"]])))
    options = ["--cells", str(folder / "cells.toml")] if side == "cell" else []
    context, processes = forking(), []
    with ExitStack() as stack:
        _, port, log = stack.enter_context(served(folder, *options))
        stack.enter_context(LinkProxy([link], lambda: port))
        began_s = time.monotonic()
        for n in np.argsort(cloud["starts_s"]).tolist():
            time.sleep(max(0.0, cloud["starts_s"][n] - (time.monotonic() - began_s)))
            device = folder / side / str(n)
            device.mkdir(parents=True)
            words = (
                "--server", f"http://127.0.0.1:{link.port}", "--adapter", cloud["wanted"][n],
                "--base-fingerprint", "0" * 64, "--folder", str(device), "--format", "rcast",
                "--token", cloud["tokens"][n], "--json", "--max-bps", str(cloud["rate_bps"]),
                "--root", str(folder / "store" / "metadata" / "root.json"),
                "--deadline-s", str(cloud["deadlines_s"][n]),
            )  # fmt: skip
            process = context.Process(target=sync_as_typed, args=(words, device / "said"))
            process.start()
            processes.append(process)
        for process in processes:
            process.join()
        lasted_s = time.monotonic() - began_s
        answers = [line for line in log.read_text().splitlines() if '"/v1/plan"' in line]
    gains = [gain_of(folder / side / str(n), cloud, n) for n in range(N_DEVICES)]
    by_adapter = {
        name: sum(g for g, wanted in zip(gains, cloud["wanted"], strict=True) if wanted == name)
        for name in ADAPTERS
    }
    said = [(folder / side / str(n) / "said").read_text() for n in range(N_DEVICES)]
    return {
        "gain_nats": sum(gains),
        "gain_nats_by_adapter": by_adapter,
        "devices_with_a_prefix": sum(gain > 0.0 for gain in gains),
        "planned_by_themselves": sum('"planned_by": "device"' in words for words in said),
        "crashed": sum("Traceback" in words for words in said),
        "link_bytes": link.down.n_bytes,
        "plans_asked": len(answers),
        "lasted_s": lasted_s,
    }


def gain_of(device: Path, cloud: dict[str, Any], n: int) -> float:
    """Return the loss removed by the best prefix of which every blob is on the disk [nats]."""
    from rankcast.edge.fetch import BlobCache
    from rankcast.release.plan import gains

    manifest = cloud["manifests"][cloud["wanted"][n]]
    held = BlobCache(device / "blobs").held(manifest.blobs)
    gain_of_bits, best = dict(gains(manifest, frozenset())), 0.0
    for file in manifest.files:
        for k in range(1, len(file.chunks) + 1):
            blobs = file.blobs(k)
            if {blob.sha256 for blob in blobs} <= held:
                best = max(best, gain_of_bits[8 * sum(blob.n_bytes for blob in blobs)])
    return best


def simulate(seeds: list[int]) -> list[dict[str, Any]]:
    """Do the same in simulated time, once a seed and link, and add what came to the results."""
    from helpers.cells import SharedLink, Syncing
    from helpers.fleet import DirectApp, SimulatedClock
    from rankcast.edge.advice import MeasuredLink
    from rankcast.rate_limit import Rate
    from rankcast.release.store import Store
    from rankcast.server.app import create_app
    from rankcast.server.cells import read_cells
    from rankcast.server.settings import ServerSettings

    rows: list[dict[str, Any]] = []
    often = Rate(1e9, 10**9)
    for rate_bps, seed in [(rate, seed) for seed in seeds for rate in RATES_BPS.values()]:
        row: dict[str, Any] = {"link_bps": rate_bps, "seed": seed}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            cloud = published(folder, rate_bps, seed)
            for side in ("alone", "cell"):
                clock = SimulatedClock()
                settings = ServerSettings(
                    database=f"sqlite:///{folder}/devices.db", calls=often, files=often,
                    now_s=clock, write_looks_s=1e9,
                    cells=read_cells(folder / "cells.toml") if side == "cell" else (),
                )  # fmt: skip
                app = DirectApp(create_app(Store(folder / "store"), settings))
                drawn = (cloud[x] for x in ("tokens", "wanted", "starts_s", "deadlines_s"))
                devices = [
                    Syncing(token, cloud["manifests"][wanted], MeasuredLink(rate_bps), *times)
                    for token, wanted, *times in zip(*drawn, strict=True)
                ]
                row[side] = SharedLink(lambda app=app: app, clock, rate_bps).deliver(devices)
                app.close()
        rows.append(row)
        print(row, flush=True)
        earlier = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        result = {**earlier, "simulated": rows}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return rows


def published(folder: Path, rate_bps: float, seed: int = SEED) -> dict[str, Any]:
    """Publish the adapters, and let the devices in behind one link."""
    from helpers.codec import packed, random_adapter
    from rankcast.codec.container import Container
    from rankcast.release.ceremony import init_keys
    from rankcast.release.keys import KeyFolder
    from rankcast.release.publish import publish
    from rankcast.release.store import Store
    from rankcast.server.registry import Registry

    store, keys, now = Store(folder / "store"), KeyFolder(folder / "keys"), datetime.now(UTC)
    init_keys(keys, store, now)
    manifests, sizes, rng = {}, {}, np.random.default_rng(seed)
    for name, (widths, first, last, fall) in ADAPTERS.items():
        tensors = random_adapter(SEED, widths, (6,) * len(widths), size=0.3)
        container = packed(tensors, -36)
        shares = fall ** np.arange(len(container.chunks))
        shares = (shares - shares[-1]) / (shares[0] - shares[-1])
        entries = tuple(
            replace(entry, loss=float(last + (first - last) * share), accuracy=0.5)
            for entry, share in zip(container.header.chunks, shares, strict=True)
        )
        container = Container(replace(container.header, chunks=entries), container.chunks)
        manifests[name] = publish([container], name, store, keys, now)
        sizes[name] = len(container.to_bytes())
    with closing(Registry(f"sqlite:///{folder}/devices.db")) as registry:
        tokens = [registry.add(f"pi-{n}", groups=["cell=north"]) for n in range(N_DEVICES)]
    (folder / "cells.toml").write_text(f"[north]\nmax_bps = {CELL_SHARE * rate_bps}\n")
    return {
        "rate_bps": rate_bps,
        "manifests": manifests, "bytes": sizes, "tokens": tokens,
        "wanted": rng.permutation([list(ADAPTERS)[n % 3] for n in range(N_DEVICES)]).tolist(),
        "starts_s": rng.uniform(*STARTS_S, N_DEVICES).tolist(),
        "deadlines_s": rng.uniform(*DEADLINES_S, N_DEVICES).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["simulated"]:
        sys.path.insert(0, TESTS)
        simulate([int(word) for word in sys.argv[2:]])
    else:
        test_no_sync_crashes_and_both_sides_deliver()
