"""`rankcast devices` in a folder without the server's database, and what it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import Call


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("list", "--json"),
        ("revoke", "pi-1"),
        ("label", "pi-1", "--groups", "eu"),
        ("rotate", "pi-1", "-o", "tokens.csv"),
    ],
)
def test_what_needs_a_database_makes_none(
    words: tuple[str, ...], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    err = call.refused("devices", *words)
    assert "no database rankcast.db; name the server" in err
    assert "--database" in err
    assert list(tmp_path.iterdir()) == []


def test_rollouts_make_none(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no database rankcast.db" in call.refused("rollout", "status")
    assert list(tmp_path.iterdir()) == []


def test_a_new_database_is_told_once_and_named(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, token, err = call("devices", "add", "pi-1")
    assert (status, token.startswith("rc_"), token.count("\n")) == (0, True, 1)
    assert "rankcast.db: It is new: only a server with this --database" in err
    _, _, err = call("devices", "add", "pi-2")
    assert "new" not in err
    assert "Devices in rankcast.db (--database)" in call.ok("devices", "list")
    out = call.ok("devices", "label", "pi-1", "--groups", "eu")
    assert out == "1 device was changed, in rankcast.db (--database).\n"
    assert "in rankcast.db" in call.ok("devices", "revoke", "pi-1")
