"""What a device has to install, and how soon `rankcast edge` answers.

A wheel of this tree goes into a fresh environment without extras, from the index that pip is set
to; without one this is skipped. Run it alone with `python benchmarks/test_edge_install.py`; what
came out lies in `results/edge_install.json`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "edge_install.json"
LARGEST_MB, LONGEST_S, RUNS = 100.0, 1.0, 15
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
UNWANTED = ("torch", "scipy", "transformers", "fastapi", "sqlalchemy")


def environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {**kept, "HOME": str(folder)}


def install(folder: Path) -> Path:
    """Return the Python of a new environment with rankcast in it."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        [python, "-m", "pip", "install", "--quiet", "--no-compile",
         "-c", str(ROOT / "constraints.txt"), str(ROOT)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"pip could not install: {done.stderr.strip().splitlines()[-1]}")
    return python


def megabytes(python: Path) -> float:
    """Return the size of what pip installed [10⁶ bytes]."""
    (packages,) = (python.parents[1] / "lib").glob("python*/site-packages")
    files = (path for path in packages.rglob("*") if path.is_file())
    ours = (f for f in files if not f.relative_to(packages).parts[0].startswith(NOT_OURS))
    return sum(file.stat().st_size for file in ours) / 1e6


def seconds(command: list[str], env: dict[str, str]) -> dict[str, float]:
    """Return how long some runs took [s], after one that made the bytecode."""
    subprocess.run(command, check=True, capture_output=True, env=env)  # noqa: S603
    taken, before = [], os.times()
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=env)  # noqa: S603
        taken.append(time.perf_counter() - began)
    after = os.times()
    cpu = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken),
            "cpu": cpu / RUNS}  # fmt: skip


def imported(python: Path, args: list[str], env: dict[str, str]) -> list[str]:
    """Return which of the unwanted libraries a command imports."""
    script = (
        "import contextlib, io, json, sys\n"
        "from rankcast.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        f"    main({args!r})\n"
        f"print(json.dumps([m for m in {UNWANTED!r} if m in sys.modules]))"
    )
    command = [str(python), "-c", script]
    return json.loads(subprocess.run(command, check=True, capture_output=True, env=env).stdout)  # noqa: S603


def state(folder: Path) -> Path:
    """Return the folder of a device that has synced."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.edge import client_of, release_of, serving

    with serving(folder) as server:
        server.publish(release_of(1))
        client_of(server, folder).sync()
    return folder / "state"


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, env = install(folder), environment(folder)
        bare_mb = megabytes(python)
        program = str(python.parent / "rankcast")
        commands = {
            "rankcast edge --help": ["edge", "--help"],
            "rankcast edge status": ["edge", "status", "--folder", str(state(folder))],
        }
        taken = {what: seconds([program, *args], env) for what, args in commands.items()}
        floors = {"python -c pass": "pass", "import numpy": "import numpy"}
        taken |= {what: seconds([str(python), "-c", c], env) for what, c in floors.items()}
        unwanted = {what: imported(python, args, env) for what, args in commands.items()}
        return {
            "megabytes": bare_mb,
            "megabytes_with_bytecode_of_what_ran": megabytes(python),
            "goal_megabytes": LARGEST_MB,
            "seconds": taken,
            "goal_seconds": LONGEST_S,
            "unwanted_imports": unwanted,
            "installed_with": "pip install --no-compile, constraints.txt, no extra",
            "runs": RUNS,
            "machine": f"{os.cpu_count()} cores ({platform.machine()}) with other work on them, "
            f"load average {os.getloadavg()[0]:.1f}",
            "python": platform.python_version(),
            "command": "python benchmarks/test_edge_install.py",
        }


def test_a_device_installs_little_and_starts_soon() -> None:
    result = measure()
    assert result["megabytes_with_bytecode_of_what_ran"] < LARGEST_MB
    for what, unwanted in result["unwanted_imports"].items():
        assert unwanted == []
        assert result["seconds"][what]["cpu"] < LONGEST_S  # whatever else the machine does


if __name__ == "__main__":
    measured = measure()
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    print(json.dumps(measured, indent=2))
