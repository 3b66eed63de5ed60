"""What `rankcast serve` carries: 200 devices, plans and blobs, beside nginx with the same files.

One client (wrk, one thread, 200 connections, 200 tokens) asks in turn, in an order drawn anew each
round: nginx with the store alone (docs/deploy/nginx-static.conf), nginx before rankcast serve
(docs/deploy/nginx.conf, which checks tokens), and rankcast serve itself. TLS is off, and nginx's
limit on one device's requests is raised, for 200 tokens stand for all devices. Client and server
share the machine's cores, so that what a request costs the server is told in CPU time as well. Run
it alone with `python benchmarks/test_serve_load.py`; what came out lies in
`results/serve_load.json`.

Two more commands write under their names in the same file. `… test_serve_load.py edges` is of 1,000
devices that keep their connections to nginx before one server, each of which also asks nginx for a
plain file as long as a plan. `… test_serve_load.py rollouts` counts looks (which version, and a
plan for it that leaves nothing to fetch) with 100,000 registered devices, in turn without rollouts,
while the first stage of ten rollouts of all devices is under way, and while their last one is. In
each round every fleet first gets looks of devices that have never looked, and then looks of the
same devices again. The ten have the same order of devices, so that the second to the tenth are
copied in the database. The goal is of processor time, for other work shares the machine.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serve_load.json"
N_DEVICES, CONNECTIONS, WORKERS = 200, 200, 2
GOAL = 0.5
SMALL = (800, *(4096 * 2 ** (n // 2) for n in range(12)))
"""Bytes of header and chunks of an adapter for a small model, as in the tests' releases."""
LARGE = (2000, *(2**20,) * 6)
"""The same for a model of some billions of weights."""
VARIANTS = ("static files", "nginx and rankcast serve", "rankcast serve")
N_EDGES, PAUSE_S = 1000, 60.0
"""Devices that stay connected, and the mean time between two syncs of one [s]."""
N_REGISTERED, N_ROLLOUTS, LOOKING = 100_000, 10, 64
FLEETS = ("no rollouts", "ten rollouts in their first stage", "ten rollouts in their last stage")
KINDS = ("first", "again")


@dataclass
class Site:
    """A store that is served in three ways.

    Attributes:
        folder: for what clients read.
        ports: by variant.
        processes: by variant; what its CPU time is counted of.
        base: fingerprint of the base model.
    """

    folder: Path
    tokens: list[str]
    base: str
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, list[Any]] = field(default_factory=dict)

    def cpu_s(self, variant: str) -> float:
        """Return the CPU time that a variant's processes have used [s]."""
        import psutil

        total = 0.0
        for process in self.processes[variant]:
            for one in (process, *process.children(recursive=True)):
                try:
                    times = one.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                total += times.user + times.system
        return total


def registered(database: Path, n_devices: int) -> list[str]:
    """Let devices in, all in one transaction, and return their tokens."""
    import sqlalchemy as sa

    from rankcast.server.registry import DEVICES, Registry, new_token

    registry = Registry(f"sqlite:///{database}")
    made = [new_token(f"edge-{n}") for n in range(n_devices)]
    with registry.writing() as connection:
        connection.execute(sa.insert(DEVICES), [row for _, row in made])
    registry.close()
    return [token for token, _ in made]


@contextmanager
def sites(folder: Path, n_devices: int = N_DEVICES) -> Iterator[Site]:
    import psutil

    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    from helpers.servers import nginx, served
    from helpers.stores import FINGERPRINT, put_release, store_with
    from rankcast.release.store import Store

    store = Store(folder / "store")
    releases = [put_release(store, name, 1, (sizes,), ((1.0,) * 40,))
                for name, sizes in (("sst2", SMALL), ("chat", LARGE))]  # fmt: skip
    store_with(folder / "store", *releases)
    for release in releases:
        paths = (f"/blobs/{b.sha256[:2]}/{b.sha256}" for b in release.blobs)
        (folder / f"{release.name}.paths").write_text("\n".join(paths))
    tokens = registered(folder / "devices.db", n_devices)
    (folder / "tokens").write_text("\n".join(tokens))
    site, me = Site(folder, tokens, FINGERPRINT), psutil.Process()
    plain = {" ssl http2": "", "rate=200r/s": "rate=100000r/s", "rate=10r/s": "rate=100000r/s"}

    with ExitStack() as stack:
        before = set(me.children())
        _, port, _ = stack.enter_context(served(folder, "--workers", str(WORKERS)))
        server = [child for child in me.children() if child not in before]
        site.ports[VARIANTS[2]], site.processes[VARIANTS[2]] = port, server
        for variant, name in ((VARIANTS[0], "nginx-static.conf"), (VARIANTS[1], "nginx.conf")):
            before = set(me.children())
            site.ports[variant] = stack.enter_context(
                nginx(folder / name, name, store.root, port, workers=WORKERS, changes=plain)
            )
            site.processes[variant] = [c for c in me.children() if c not in before]
        site.processes[VARIANTS[1]] += server
        yield site


def wrk(
    site: Site,
    variant: str,
    adapter: str,
    seconds: int,
    seed: int,
    *,
    plan: bool,
    connections: int = CONNECTIONS,
    looks: range | None = None,
) -> Any:
    from helpers.programs import needs

    asked = {"adapter": adapter, "base_fingerprint": site.base, "deadline_s": 1.0, "held": [],
             "link": {"throughput_bps": 2e6}}  # fmt: skip
    env = {"TOKENS": str(site.folder / "tokens"), "SEED": str(seed),
           "PATHS": str(site.folder / f"{adapter}.paths")}  # fmt: skip
    if plan:
        env["PLAN"] = json.dumps(asked)
    if looks is not None:
        env |= {"LOOKS": str(site.folder / "looks"), "FIRST": str(looks.start),
                "COUNT": str(len(looks))}  # fmt: skip
    url = f"http://127.0.0.1:{site.ports[variant]}"
    command = [needs("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
               "-s", str(HERE / "load.lua"), url]  # fmt: skip
    before = site.cpu_s(variant)
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout  # noqa: S603
    line = next(line for line in out.splitlines() if line.startswith("JSON "))
    got = json.loads(line[5:])
    got["server_cpu_us"] = 1e6 * (site.cpu_s(variant) - before) / max(1, got["requests"])
    got["per_s"] = got["requests"] / got["seconds"]
    got["megabytes_per_s"] = got["bytes"] / got["seconds"] / 1e6
    return got


def devices(
    site: Site,
    variant: str,
    seconds: float,
    pause_s: float,
    seed: int,
    *,
    beside: dict[str, Any] | None = None,
) -> Any:
    import numpy as np

    given = {"port": site.ports[variant], "tokens": site.tokens, "base": site.base,
             "seconds": seconds, "pause_s": pause_s, "seed": seed, "beside": beside}  # fmt: skip
    (site.folder / "given.json").write_text(json.dumps(given))
    command = [sys.executable, str(HERE / "edges.py"), str(site.folder / "given.json")]
    began = time.perf_counter()
    seen = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603
    took_s = time.perf_counter() - began
    p50, p95, p99 = np.percentile(1e3 * np.array(seen["plan_s"]), (50, 95, 99))
    of_file = np.percentile(1e3 * np.array(seen["file_s"]), (50, 95, 99)) if beside else ()
    files = dict(zip(("file_p50_ms", "file_p95_ms", "file_p99_ms"), of_file, strict=False))
    return {**files, "plans": len(seen["plan_s"]), "blobs": seen["n_blobs"],
            "bytes": seen["n_bytes"], "reports": seen["n_reports"], "errors": seen["errors"],
            "seconds": took_s, "plan_p50_ms": p50, "plan_p95_ms": p95, "plan_p99_ms": p99,
            }  # fmt: skip


def many_edges(folder: Path, seconds: float, n_edges: int = N_EDGES) -> Any:
    """Let devices sync through nginx, each with a plain file as long as a plan beside each plan."""
    with sites(folder, n_edges) as site:
        from helpers.servers import ask
        from rankcast.release.store import Store

        wanted = {"adapter": "sst2", "base_fingerprint": site.base, "deadline_s": 1.0, "held": [],
                  "link": {"throughput_bps": 2e6}}  # fmt: skip
        _, body = ask(site.ports[VARIANTS[2]], "POST", "/v1/plan", wanted, site.tokens[0])
        blob = Store(folder / "store").put(bytes(len(body)))
        path = f"/blobs/{blob.sha256[:2]}/{blob.sha256}"
        beside = {"port": site.ports[VARIANTS[0]], "path": path}
        got = devices(site, VARIANTS[1], seconds, min(PAUSE_S, seconds), 1, beside=beside)
    return {"devices": n_edges, "mean_pause_s": min(PAUSE_S, seconds), "file_bytes": blob.n_bytes,
            **got}  # fmt: skip


def copy_rollout(registry: Any) -> None:
    """Begin the first rollout's like for every other adapter."""
    import sqlalchemy as sa

    from rankcast.server.rollouts.tables import MEMBERS, ROLLOUTS

    with registry.writing() as connection:
        for k in range(1, N_ROLLOUTS):
            changed = {"number": k + 1, "adapter": f"a{k}",
                       "plan": sa.func.replace(ROLLOUTS.c.plan, '"a0"', f'"a{k}"')}  # fmt: skip
            for table, key, new in ((ROLLOUTS, "number", changed),
                                    (MEMBERS, "rollout", {"rollout": k + 1})):  # fmt: skip
                columns = [sa.literal(new[c.name]) if isinstance(new.get(c.name), str | int)
                           else new.get(c.name, c) for c in table.columns]  # fmt: skip
                rows = sa.select(*columns).where(table.c[key] == 1)
                names = [c.name for c in table.columns]
                connection.execute(sa.insert(table).from_select(names, rows))


@contextmanager
def large_fleets(folder: Path, n_devices: int) -> Iterator[Site]:
    """Serve one store from two databases: the same devices, without rollouts and with ten."""
    import psutil

    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    from helpers.servers import served
    from helpers.stores import FINGERPRINT, put_release, store_with
    from rankcast.release.manifest import Older
    from rankcast.release.store import Store
    from rankcast.server.registry import Registry
    from rankcast.server.rollouts.database import Rollouts
    from rankcast.server.rollouts.decide import Published
    from rankcast.server.rollouts.rollout import Order, Stage

    store, releases, plans = Store(folder / "store"), [], []
    for k in range(N_ROLLOUTS):
        first, second = (put_release(store, f"a{k}", v, (SMALL,), ((1.0,) * 12,)) for v in (1, 2))
        releases.append(replace(second, older=(Older(1, store.put(first.listed())),)))
        asked = {
            "base_fingerprint": FINGERPRINT,
            "deadline_s": 1.0,
            "link": {"throughput_bps": 2e6},
        }
        held = [blob.sha256 for blob in first.blobs]
        plans.append({**asked, "adapter": first.name, "version": 1, "held": held})
    store_with(folder / "store", *releases)
    tokens = registered(folder / "devices.db", n_devices)
    random.Random(0).shuffle(tokens)  # noqa: S311
    (folder / "tokens").write_text("\n".join(tokens))
    (folder / "looks").write_text("\n".join(map(json.dumps, plans)))
    (folder / "a0.paths").write_text("/")
    site, me = Site(folder, tokens, FINGERPRINT), psutil.Process()
    with ExitStack() as stack:
        for number, fleet in enumerate(FLEETS):
            root = folder / str(number)
            root.mkdir()
            (root / "store").symlink_to(folder / "store")
            shutil.copyfile(folder / "devices.db", root / "devices.db")
            if number == 1:
                registry = Registry(f"sqlite:///{root}/devices.db")
                order = Order("a0", 2, 1, stages=(Stage(0.1, 1e9), Stage(1.0, 1e9)))
                Rollouts(registry).create(order, time.time(), Published(2, frozenset({1})))
                copy_rollout(registry)
                registry.close()
                shutil.copyfile(root / "devices.db", folder / "devices.db")
            if number == 2:
                with sqlite3.connect(root / "devices.db") as connection:
                    connection.execute("UPDATE rankcast_rollouts SET stage = 1")
                connection.close()
            before = set(me.children())
            _, site.ports[fleet], _ = stack.enter_context(served(root, "--workers", str(WORKERS)))
            site.processes[fleet] = [child for child in me.children() if child not in before]
        yield site


def written(site: Site, fleet: str) -> dict[str, int]:
    """Return how many events there were, and how many devices have been offered a version."""
    with sqlite3.connect(site.folder / str(FLEETS.index(fleet)) / "devices.db") as connection:
        events = connection.execute("SELECT max(sequence) FROM rankcast_events").fetchone()[0]
        offers = connection.execute(
            "SELECT count(*) FROM rankcast_rollout_devices WHERE state = 'offered' AND rollout > 0"
        ).fetchone()[0]
    connection.close()
    return {"events": events or 0, "offers": offers}


def looks_of(site: Site, fleet: str, seconds: int, looks: range) -> Any:
    """Let devices look; once more where a busy machine gave wrk no time to begin."""
    before, got = written(site, fleet), {"requests": 0}
    while not got["requests"]:
        got = wrk(site, fleet, "a0", seconds, 0, plan=False, connections=LOOKING, looks=looks)
    return got | {name: n - before[name] for name, n in written(site, fleet).items()}


def large_fleet(folder: Path, rounds: int, seconds: int, n_devices: int = N_REGISTERED) -> Any:
    """Measure looks of many registered devices, and what rollouts leave of their number."""
    pairs = n_devices * N_ROLLOUTS // (rounds + 1)

    looks: dict[str, dict[str, list[Any]]] = {kind: {f: [] for f in FLEETS} for kind in KINDS}
    with large_fleets(folder, n_devices) as site:
        for number in range(rounds + 1):  # the first is not counted
            ranges = dict.fromkeys(FLEETS, range(number * pairs, (number + 1) * pairs))
            for kind in KINDS:
                for fleet in random.Random(number).sample(FLEETS, len(FLEETS)):  # noqa: S311
                    got = looks_of(site, fleet, seconds, ranges[fleet])
                    n_seen = max(1, got["requests"] // 2 - LOOKING)
                    ranges[fleet] = ranges[fleet][:n_seen]
                    if number:
                        looks[kind][fleet].append(got)
    return {"devices": n_devices, "rollouts": N_ROLLOUTS, "rounds": rounds,
            "seconds_of_each": seconds, "connections": LOOKING, "requests_for_each_look": 2,
            "goal": "looks with ten rollouts at least 80% of those without",
            "with_rollouts_of_without": {kind: ratios(of) for kind, of in looks.items()},
            "looks": looks}  # fmt: skip


def ratios(looks: dict[str, list[Any]]) -> dict[str, Any]:
    """Return by how much looks with rollouts are as many as those without: middle, low, high."""
    import numpy as np

    from studies.report.statistics import t_interval

    shares: dict[str, Any] = {fleet: {} for fleet in FLEETS[1:]}
    for key, power in (("per_s", 1), ("server_cpu_us", -1)):
        none, *ten = (np.log([max(x[key], 1e-9) for x in looks[fleet]]) for fleet in FLEETS)
        for fleet, of in zip(FLEETS[1:], ten, strict=True):
            ratio = t_interval(power * (of - none))
            shares[fleet][f"by_{key}"] = [
                float(np.exp(x)) for x in (ratio.value, ratio.low, ratio.high)
            ]
    return shares


def measure_part(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measured = many_edges(root, 120.0) if name == "edges" else large_fleet(root, 16, 4)
    return {**measured, "workers": WORKERS, "machine": machine(), "versions": installed(),
            "command": f"python benchmarks/test_serve_load.py {name}"}  # fmt: skip


def in_turn(rounds: int, ask: Callable[[str, int], Any], variants: tuple[str, ...]) -> Any:
    """Ask all variants in each round, in an order of chance; a first round is not counted."""
    got: dict[str, list[Any]] = {variant: [] for variant in variants}
    for number in range(rounds + 1):
        order = random.Random(number).sample(variants, len(variants))  # noqa: S311
        for variant in order:
            answer = ask(variant, number)
            if number:
                got[variant].append(answer)
    return got


def summary(got: dict[str, list[Any]]) -> dict[str, Any]:
    import numpy as np

    from studies.report.statistics import t_interval

    static = np.array([x["per_s"] for x in got[VARIANTS[0]]])
    summaries = {}
    for variant, rows in got.items():
        ratio = t_interval(np.log(np.array([x["per_s"] for x in rows]) / static))
        summaries[variant] = {
            **{key: float(np.median([x[key] for x in rows]))
               for key in ("per_s", "megabytes_per_s", "server_cpu_us", "p95_ms")},
            "errors": sum(x["errors"] for x in rows),
            "of_static_files": [float(np.exp(x)) for x in (ratio.value, ratio.low, ratio.high)],
            "per_s_in_each_round": [x["per_s"] for x in rows],
        }  # fmt: skip
    return summaries


def measure(rounds: int, seconds: int) -> dict[str, Any]:
    from rankcast.server.process import PatientProtocol

    parser = PatientProtocol.__base__.__module__.rpartition(".")[2].removesuffix("_impl")

    with tempfile.TemporaryDirectory() as folder, sites(Path(folder)) as site:
        blobs = {
            adapter: summary(in_turn(
                rounds, lambda v, n: wrk(site, v, adapter, seconds, n, plan=False), VARIANTS  # noqa: B023
            ))
            for adapter in ("sst2", "chat")
        }  # fmt: skip
        plans = in_turn(
            rounds, lambda v, n: wrk(site, v, "sst2", seconds, n, plan=True), VARIANTS[1:]
        )
        edges = in_turn(
            max(1, rounds // 2), lambda v, n: devices(site, v, 3.0 * seconds, 4.0, n), VARIANTS[1:]
        )
    return {
        "devices": N_DEVICES,
        "workers": WORKERS,
        "rounds": rounds,
        "seconds_of_each": seconds,
        "seeds": "the round's number, from 1",
        "goal": f"at least {GOAL:.0%} of the chunks a second of static files",
        "blob_bytes": {"sst2": SMALL, "chat": LARGE},
        "blobs": blobs,
        "plans_as_fast_as_they_are_answered": plans,
        "devices_that_sync_every_4_s": edges,
        "machine": machine(),
        "parser": parser,
        "versions": installed(),
        "command": "python benchmarks/test_serve_load.py",
    }


def machine() -> str:
    return (f"{os.cpu_count()} cores ({platform.machine()}) shared by client, servers and other "
            f"work; load average {os.getloadavg()[0]:.1f}")  # fmt: skip


def installed() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("uvicorn", "httptools", "uvloop", "h11", "fastapi", "sqlalchemy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    for name, flag in (("nginx", "-v"), ("wrk", "-v")):
        done = subprocess.run([name, flag], capture_output=True, text=True, check=False)  # noqa: S603
        versions[name] = (done.stdout + done.stderr).partition("\n")[0]
    return versions


def n_errors(result: dict[str, Any]) -> int:
    of_blobs = sum(x["errors"] for load in result["blobs"].values() for x in load.values())
    of_plans = sum(
        x["errors"] for rows in result["plans_as_fast_as_they_are_answered"].values() for x in rows
    )
    return (
        of_blobs
        + of_plans
        + sum(
            len(x["errors"])
            for rows in result["devices_that_sync_every_4_s"].values()
            for x in rows
        )
    )


def test_two_hundred_devices_get_what_they_ask_for() -> None:
    result = measure(1, 1)
    assert n_errors(result) == 0


def test_a_fleet_stays_connected_and_looks_while_rollouts_are_under_way(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    edges = many_edges(tmp_path / "few", 3.0, 50)
    assert edges["errors"] == []
    assert edges["plans"] >= 50
    looks = large_fleet(tmp_path / "many", 2, 1, 3000)
    assert n_part_errors(looks) == 0
    again = [x for rows in looks["looks"]["again"].values() for x in rows]
    assert max(x["offers"] for x in again) <= LOOKING  # whose first look was not answered


def n_part_errors(result: dict[str, Any]) -> int:
    fleets = (of.values() for of in result.get("looks", {}).values())
    looks = (x for of in fleets for rows in of for x in rows)
    return len(result.get("errors", ())) + sum(x["errors"] for x in looks)


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    measured = measure_part(part) if part in {"edges", "rollouts"} else measure(6, 5)
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    kept[part or measured["parser"]] = measured  # beside what was there
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    print(json.dumps(measured, indent=2))
    assert (n_part_errors if part else n_errors)(measured) == 0
