"""The contracts of `[tool.importlinter]` hold: what is higher imports what is lower, only."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_contracts_hold() -> None:
    """In a process of its own, because import-linter switches off every logger that it finds."""
    words = ["lint-imports", "--config", "pyproject.toml", "--no-cache"]
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(  # noqa: S603 our own interpreter's program
        [program, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kept, 0 broken" in done.stdout


def test_every_part_has_its_place_in_the_layers() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layered = {
        layer
        for contract in settings["contracts"]
        if contract["type"] == "layers"
        for layer in contract["layers"]
    }
    package = ROOT / "src" / "rankcast"
    parts = {f"rankcast.{p.stem}" for p in package.glob("*.py") if p.stem != "__init__"}
    parts |= {f"rankcast.{p.parent.name}" for p in package.glob("*/__init__.py")}
    assert parts - layered == set()
