"""What a device of a simulated fleet costs, and how well simulated time agrees with sockets.

1,000, 10,000 and 100,000 devices for two minutes of simulated time, each in a process of its own on
one core: CPU time and memory beside the imports. Then 12 devices over the same links with sockets
and in simulated time. Run it alone with `python benchmarks/test_fleet.py`; what came out lies in
`results/fleet.json`. It takes three minutes, two of them for the sockets.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankcast.cli.simulate import Simulate

if TYPE_CHECKING:
    import numpy as np

    from rankcast.simulation.links import Links

RESULTS = Path(__file__).parent / "results" / "fleet.json"
N_DEVICES = (1000, 10_000, 100_000)
N_WITH_SOCKETS, MINUTES = 12, 2.0
SHOWN = (
    "with_adapter",
    "in_time",
    "whole",
    "first_usable_s",
    "updated_s",
    "received_bits",
    "link_bits",
)


def fleet_of(n_devices: int) -> dict[str, Any]:
    """Simulate in this process, whose largest memory counts."""
    command = Simulate(virtual=True, devices=n_devices, minutes=MINUTES)
    manifests = command.manifests()
    Simulate(virtual=True, devices=10, minutes=0.1).fleet(manifests)  # imports
    before_kb, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    _, _, result = command.fleet(manifests)
    cpu_s = time.process_time() - began_s
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    syncs = int(result.devices.n_syncs.sum())
    return {
        "cpu_s": round(cpu_s, 3),
        "cpu_us_for_each_device": round(1e6 * cpu_s / n_devices, 1),
        "cpu_us_for_each_sync": round(1e6 * cpu_s / syncs, 2),
        "mebibytes": round(grown_kb / 1024, 1),
        "bytes_for_each_device": round(1024 * grown_kb / n_devices),
        "syncs": syncs,
        "summary": result.summary(),
    }


def alone(n_devices: int) -> dict[str, Any]:
    done = subprocess.run(  # noqa: S603 our own words, no shell
        [sys.executable, __file__, str(n_devices)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def agreement() -> dict[str, Any]:
    """Run the same devices over the same links with sockets and in simulated time."""
    from rankcast.simulation.fleet import simulate_fleet
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

    virtual = simulate_fleet(settings, N_WITH_SOCKETS, same, manifests)
    pairs = {"sockets": real.summary(), "simulated time": virtual.summary()}
    found = {name: {key: pair[key] for key in SHOWN} for name, pair in pairs.items()}
    found["sockets"]["late_ms_p95"] = round(1e3 * real.late_s, 1)
    return found


def test_a_device_of_a_large_fleet_costs_what_one_of_a_small_does() -> None:
    few, many = alone(1000), alone(20_000)
    assert many["cpu_us_for_each_device"] < 3 * few["cpu_us_for_each_device"]
    assert few["summary"]["with_adapter"] == 1000


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(fleet_of(int(sys.argv[1]))))
    else:
        measured = {
            "fleets": {str(n): alone(n) for n in N_DEVICES},
            "agreement": agreement(),
            "minutes": MINUTES,
            "machine": f"{platform.processor() or platform.machine()}, one core",
            "python": platform.python_version(),
            "command": "python benchmarks/test_fleet.py",
        }
        RESULTS.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
        print(json.dumps(measured, indent=2))
