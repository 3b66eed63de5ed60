"""Tutorials, as a reader follows them: every numbered step in an empty folder."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import pytest

from helpers.programs import free_port
from helpers.tutorials import TUTORIALS, check_output, follow

ROOT = Path(__file__).parents[2]


def test_a_peft_adapter_changes_answers_of_a_running_program(tmp_path: Path) -> None:
    page, port = (TUTORIALS / "peft-adapter.md").read_text("utf-8"), free_port()
    assert page.count("STORE_PORT=8080") == 1
    ran = follow(page.replace("STORE_PORT=8080", f"STORE_PORT={port}"), tmp_path)
    check_output(ran, least=7)
    said = [re.findall(r"process (\d+) says (\w+)", "\n".join(block.printed)) for block in ran]
    answers = max(said, key=len)
    assert [answer for _, answer in answers] == ["yes", "no", "yes"]
    assert len({process for process, _ in answers}) == 1
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_version_reaches_a_fleet_in_stages(tmp_path: Path) -> None:
    """Five devices in the place of a hundred: stages of 1, 1 and 3."""
    page, port = (TUTORIALS / "fleet.md").read_text("utf-8"), free_port()
    assert page.count("PIS=100\n") == 1
    ran = follow(page.replace("PIS=100\n", "PIS=5\n").replace("8080", str(port)), tmp_path)
    check_output(ran, least=9)
    lines = "\n".join(line for block in ran for line in block.printed)
    assert re.findall(r"^version (\d): (\d) of 5 Pis$", lines, re.MULTILINE) == [
        ("1", "5"), ("1", "5"), ("1", "4"), ("3", "1"), ("1", "3"), ("3", "2"), ("3", "5"),
        ("1", "4"), ("3", "1"),
    ]  # fmt: skip
    assert re.findall(r"puts version (\d) back", lines) == ["1"]
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_table_4_has_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = (TUTORIALS / "table-4.md").read_text("utf-8")
    for command in ("report table4", "run table4 --quick"):
        assert page.count(f"python3 dev.py study {command}") >= 1
    here = f"--work {shlex.quote(str(tmp_path / 'work'))}"  # the checkout's own stays as it is
    page = page.replace(
        "python3 dev.py study report table4", f"python -m studies report table4 {here}"
    )
    page = page.replace("python3 dev.py study run table4", f"python -m studies run table4 {here}")
    check_output(follow(page, tmp_path), least=2)


def test_an_allocator_of_ones_own_gets_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (TUTORIALS / "allocator.md").read_text("utf-8")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # what dev.py runs, without setting up anything
    ran = follow(page.replace("python3 dev.py study", "python -m studies"), tmp_path)
    check_output(ran, least=3)
    assert (tmp_path / "empty/runs/studies/quick/late_layers/result.json").exists()
