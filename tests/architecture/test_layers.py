"""The contracts of `[tool.importlinter]` hold: what is higher imports what is lower, only."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]


def test_contracts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


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
