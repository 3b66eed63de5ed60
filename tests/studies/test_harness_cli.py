from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_studies import calls, write_study
from studies.harness import cli


def call(*args: str, capsys: Any) -> tuple[int, str, str]:
    """Call a command in the folder of studies below the working directory."""
    given = () if {"--studies", "--help"} & set(args) else ("--studies", "studies")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*args, *given])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKCAST_DATA", raising=False)
    folder = tmp_path / "studies"
    write_study(folder, "fig3", '[Job("a", 1), Job("b", 2)]', source="Fig. 3")
    write_study(folder, "second", '[Job("c", 3, {"do": "fail", "switch": "ok"})]', needs=("fig3",))
    return folder


def test_run_list_report(folder: Path, capsys: Any) -> None:
    status, out, err = call("run", "fig3", "--workers", "1", "--json", capsys=capsys)
    assert status == 0
    [ran] = json.loads(out)["studies"]
    assert (ran["name"], ran["rows"], ran["missing"]) == ("fig3", 2, [])
    assert Path(ran["result"]) == folder / "fig3" / "result.json"
    assert "2/2 fig3/b" in err
    assert calls(folder, "fig3") == ["a", "b"]

    status, out, _ = call("list", "--json", capsys=capsys)
    assert status == 0
    assert [(e["name"], e["finished"], e["jobs"], e["here"]) for e in json.loads(out)] == [
        ("fig3", 2, 2, 2),
        ("second", 0, 1, 0),
    ]
    status, out, _ = call("list", capsys=capsys)
    assert status == 0
    assert "Fig. 3" in out

    status, out, _ = call("report", "fig3", "--json", capsys=capsys)
    assert status == 0
    [claim] = json.loads(out)
    assert {"claim", "paper", "ours", "interval", "verdict", "seeds", "command"} <= set(claim)
    assert claim["ours"] == "[10, 20]"


def test_a_failure_is_named_with_how_to_retry(folder: Path, capsys: Any) -> None:
    status, out, err = call("run", "--all", "--quick", "--workers", "1", capsys=capsys)
    assert status == 1
    assert "fig3: 2/2 rows" in out
    assert "second: 0/1 rows" in out
    assert "second/c failed: no data; name its folder with --data" in err
    assert "python3 dev.py study run --all --quick" in err
    assert not (folder / "fig3" / "result.json").exists()  # quick results are not committed
    (folder / "second" / "ok").touch()
    assert call("run", "--all", "--quick", "--workers", "1", capsys=capsys)[0] == 0
    assert calls(folder, "fig3") == ["a", "b"]
    _, out, _ = call("report", "second", "--quick", "--json", capsys=capsys)
    assert json.loads(out)[0]["command"] == "python3 dev.py study run second --quick"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run",), "or give --all: fig3, second"),
        (("run", "fig3", "--all"), "or give --all"),
        (("run", "fig33"), "did you mean 'fig3'"),
        (("run", "fig3", "--quick", "--scale", "paper"), "contradict"),
        (("run", "fig3", "--workers", "0"), "--workers must be at least 1"),
        (("run", "fig3", "--data", "nowhere"), "nowhere"),
        (("run", "fig3", "--speed", "3"), "has no option --speed"),
        (("list", "--studies", "nowhere"), "holds no studies"),
        (("report", "fig4"), "did you mean 'fig3'"),
    ],
)
def test_mistakes_are_one_clear_line(
    folder: Path, args: tuple[str, ...], message: str, capsys: Any
) -> None:
    status, out, err = call(*args, capsys=capsys)
    assert status == 2
    assert not out
    assert message in err
    assert "Traceback" not in err
    assert calls(folder, "fig3") == []


def test_report_writes_a_page_from_what_was_presented(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    seen: list[Any] = []

    def write_report(output: Path, presented: Any) -> Path:
        seen.append((output, [one.study.name for one in presented]))
        return output / "index.html"

    monkeypatch.setattr(cli, "write_report", write_report)
    status, out, _ = call("report", capsys=capsys)
    assert status == 0
    assert seen == [(tmp_path / "runs" / "studies" / "report", ["fig3", "second"])]
    assert out.strip().endswith("index.html")
    call("report", "second", "--output", str(tmp_path / "page"), capsys=capsys)
    assert seen[1] == (tmp_path / "page", ["second"])


def test_a_typo_in_a_command_names_the_nearest(folder: Path, capsys: Any) -> None:
    status, out, err = call("reprot", capsys=capsys)
    assert (status, out) == (2, "")
    assert "did you mean 'report'" in err


def test_the_help_lists_the_commands(capsys: Any) -> None:
    status, out, _ = call("--help", capsys=capsys)
    assert status == 0
    assert all(f"  {command}" in out for command in ("list", "run", "report"))


@pytest.mark.parametrize("command", ["list", "run", "report"])
def test_the_help_of_each_command_has_an_example(command: str, capsys: Any) -> None:
    status, out, _ = call(command, "--help", capsys=capsys)
    assert status == 0
    assert f"python3 dev.py study {command}" in out.partition("\n")[2]
