"""How soon a device with a GGUF and a running llama.cpp starts, and syncs where nothing is new.

    python benchmarks/llm_device.py

A tiny language model is published for its GGUF, and `rankcast edge sync --llama-url` brings its
adapter into llama.cpp's own server; then each command runs again and again as a process of its own.
Store and server are on this machine. The goals are compared with processor time, whatever else the
machine does; beside it are the seconds by the clock, and the floor: the interpreter alone, and with
the libraries that checking signatures takes. Results lie in `results/llm_device.json`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "llm_device.json"
RUNS = 5
START, NOTHING_NEW = "rankcast edge status", "rankcast edge sync, nothing new"
GOALS_S = {START: 1.0, NOTHING_NEW: 3.0}
FLOORS = {
    "python -c pass": "pass",
    "import numpy, httpx2, tuf": "import numpy, httpx2, tuf.ngclient",
}
UNWANTED = ("torch", "transformers", "peft", "scipy", "gguf")
_LISTING = """
import contextlib, io, json, sys
from rankcast.cli.main import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[2:])
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""


def call(*words: str) -> str:
    """Run a command in this process and return what it prints."""
    from rankcast.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(words)
        except SystemExit as stopped:
            if stopped.code:
                raise
    return out.getvalue()


class Call:
    """Stands in for the tests' fixture."""

    @staticmethod
    def ok(*words: str) -> str:
        """Return what a command prints that succeeds."""
        return call(*words)


def seconds(command: list[str]) -> dict[str, float]:
    """Return how long some runs took [s], after one that made the bytecode."""
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 our own words
    taken, before = [], os.times()
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 our own words
        taken.append(time.perf_counter() - began)
    after = os.times()
    cpu = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return {"cpu": cpu / RUNS, "median": statistics.median(taken), "min": min(taken),
            "max": max(taken)}  # fmt: skip


def measure() -> dict[str, Any]:
    """Publish, sync once, and measure."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    from helpers.llama_device import Device, new_cloud
    from helpers.servers import files_over_http

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud: Any = new_cloud(folder, Call())  # type: ignore[arg-type]
        cloud.publish(1, "--runs-on", str(cloud.gguf))
        url = stack.enter_context(files_over_http(folder / "store"))
        device = Device(cloud, url, cloud.call)
        server = stack.enter_context(device.serve())
        device.sync(server)
        commands = {
            START: ["edge", "status", "--folder", str(device.folder)],
            NOTHING_NEW: device.words(server),
        }
        program = [sys.executable, "-m", "rankcast"]
        taken = {what: seconds([*program, *words]) for what, words in commands.items()}
        floors = {what: seconds([sys.executable, "-c", code]) for what, code in FLOORS.items()}
        unwanted = {}
        for what, words in commands.items():
            listing = [sys.executable, "-c", _LISTING, json.dumps(UNWANTED), *words]
            done = subprocess.run(listing, check=True, capture_output=True)  # noqa: S603 ours
            unwanted[what] = json.loads(done.stdout)
    return {
        "seconds": taken,
        "floor_seconds": floors,
        "goal_cpu_seconds": GOALS_S,
        "imports_of": list(UNWANTED),
        "unwanted_imports": unwanted,
        "runs": RUNS,
        "machine": f"{os.cpu_count()} cores ({platform.machine()}) with other work on them, "
        f"load average {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("httpx2", "numpy", "tuf", "xllamacpp")},
        "command": "python benchmarks/llm_device.py",
    }


if __name__ == "__main__":
    measured = measure()
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    print(json.dumps(measured, indent=2))
    for what, goal_s in GOALS_S.items():
        if measured["unwanted_imports"][what] or measured["seconds"][what]["cpu"] >= goal_s:
            raise SystemExit(f"{what} takes longer than {goal_s:g} s, or imports too much.")
