"""What a device of a simulated fleet costs, and how well simulated time agrees with sockets.

1,000, 10,000 and 100,000 devices for two minutes of simulated time, each in a process of its own on
one core: CPU time and memory beside the imports. Then 100,000 and a million on two workers of a
Ray cluster on this machine: CPU time of the workers' shards and of the process that adds them up,
and the memory of the latter. Then 12 devices over the same links with sockets and in simulated
time. Run it alone with `python benchmarks/test_fleet.py`, or with `… test_fleet.py ray` for the
part with Ray; what came out lies in `results/fleet.json`. It takes some minutes, two of them for
the sockets.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankcast.cli.simulate import Simulate
from rankcast.simulation.fleet import BLOCK, Fleet
from rankcast.simulation.shards import RayWorkers, Shard, Sharding, shards_here

if TYPE_CHECKING:
    import numpy as np

    from rankcast.simulation.links import Links
    from rankcast.simulation.sums import FleetSums

RESULTS = Path(__file__).parent / "results" / "fleet.json"
N_DEVICES = (1000, 10_000, 100_000)
N_ON_RAY, WORKERS = (100_000, 1_000_000), 2
N_WITH_SOCKETS, MINUTES = 12, 2.0
Compute = Callable[[Sharding, Callable[[], bool]], Iterator[Shard]]
SHOWN = (
    "with_adapter",
    "in_time",
    "whole",
    "first_usable_s",
    "updated_s",
    "received_bits",
    "link_bits",
)


def fleet_of(n_devices: int, workers: int = 0) -> dict[str, Any]:
    """Simulate in this process, whose largest memory counts, or on new workers of Ray."""
    with ExitStack() as stack:
        compute = shards_here
        if workers:
            compute = stack.enter_context(RayWorkers("local", workers)).shards
        computed(compute, 4 * workers + 10, block=4)  # imports
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began_s, here_s = time.perf_counter(), time.process_time()
        sums, shards_s = computed(compute, n_devices)
        elapsed_s, here_s = time.perf_counter() - began_s, time.process_time() - here_s
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    cpu_s = here_s + shards_s if workers else here_s  # without workers the shards are inside
    return {
        "cpu_s": round(cpu_s, 3),
        "cpu_us_for_each_device": round(1e6 * cpu_s / n_devices, 1),
        "cpu_us_for_each_sync": round(1e6 * cpu_s / sums.counts["syncs"], 2),
        "elapsed_s": round(elapsed_s, 2),
        "mebibytes": round(grown_kb / 1024, 1),
        "bytes_for_each_device": round(1024 * grown_kb / n_devices),
        "syncs": sums.counts["syncs"],
        "summary": sums.summary(),
    }


def computed(compute: Compute, n_devices: int, block: int = BLOCK) -> tuple[FleetSums, float]:
    """Return the sums over devices, and the CPU time of their shards [s]."""
    command = Simulate(virtual=True, devices=n_devices, minutes=MINUTES)
    _, fleet = command.fleet(command.manifests())
    sums, cpu_s = None, 0.0
    for shard in compute(Sharding(replace(fleet, block=block)), lambda: False):
        sums = shard.sums if sums is None else sums + shard.sums
        cpu_s += shard.cpu_s
    assert sums is not None
    return sums, cpu_s


def alone(n_devices: int, workers: int = 0) -> dict[str, Any]:
    done = subprocess.run(  # noqa: S603 our own words, no shell
        [sys.executable, __file__, str(n_devices), str(workers)],
        check=True, capture_output=True, text=True,
        env={**os.environ, "RAY_worker_niceness": "0"},  # else a busy machine leaves them no time
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def agreement() -> dict[str, Any]:
    """Run the same devices over the same links with sockets and in simulated time."""
    from rankcast.simulation.run import Simulation
    from rankcast.simulation.settings import SimulationSettings

    command = Simulate(devices=N_WITH_SOCKETS, minutes=MINUTES)
    name, releases = command.releases()
    links = command.links(sum(len(chunk) for chunk in releases[0][0].chunks))
    settings = SimulationSettings(
        name, 60.0 * MINUTES, command.deadline_s, command.every_s, links.median_bps
    )
    with tempfile.TemporaryDirectory() as folder:
        real = Simulation(settings, links, releases, Path(folder, "real")).run(lambda: False)
    manifests = command.manifests()

    def same(block: range, rng: np.random.Generator) -> Links:
        del block, rng
        return links

    virtual = Fleet(settings, N_WITH_SOCKETS, same, manifests).run()
    pairs = {"sockets": real.summary(), "simulated time": virtual.summary()}
    found = {name: {key: pair[key] for key in SHOWN} for name, pair in pairs.items()}
    found["sockets"]["late_ms_p95"] = round(1e3 * real.late_s, 1)
    return found


def test_a_device_of_a_large_fleet_costs_what_one_of_a_small_does() -> None:
    few, many = alone(1000), alone(20_000)
    assert many["cpu_us_for_each_device"] < 3 * few["cpu_us_for_each_device"]
    assert few["summary"]["with_adapter"] == 1000


def conditions(part: str) -> dict[str, Any]:
    words = (f"{os.cpu_count()} cores ({platform.machine()}) shared with other work; load average "
             f"{os.getloadavg()[0]:.1f}")  # fmt: skip
    return {"machine": words, "python": platform.python_version(),
            "command": f"python benchmarks/test_fleet.py {part}".strip()}  # fmt: skip


def on_ray() -> dict[str, Any]:
    measured = {str(n): alone(n, WORKERS) for n in N_ON_RAY}
    return {**measured, "workers": WORKERS, "minutes": MINUTES, **conditions("ray")}


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["ray"]):
        kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        if not sys.argv[1:]:
            kept |= {
                "fleets": {str(n): alone(n) for n in N_DEVICES},
                "agreement": agreement(),
                "minutes": MINUTES,
                **conditions(""),
            }
        kept["on_ray"] = on_ray()
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
        print(json.dumps(kept, indent=2))
    else:
        print(json.dumps(fleet_of(*map(int, sys.argv[1:]))))
