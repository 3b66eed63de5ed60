from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankcast.cli import main
from small_experiments import calls, write_experiment


def call(*args: str, capsys: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["experiment", *args])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKCAST_DATA", raising=False)
    folder = tmp_path / "experiments"
    write_experiment(folder, "fig3", '[Job("a", 1), Job("b", 2)]', source="Fig. 3")
    write_experiment(
        folder, "second", '[Job("c", 3, {"do": "fail", "switch": "ok"})]', needs=("fig3",)
    )
    return folder


def test_run_list_report(folder: Path, capsys: Any) -> None:
    status, out, err = call("run", "fig3", "--workers", "1", "--json", capsys=capsys)
    assert status == 0
    [ran] = json.loads(out)["experiments"]
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


def test_a_failure_is_told_with_how_to_retry(folder: Path, capsys: Any) -> None:
    status, out, err = call("run", "--all", "--quick", "--workers", "1", capsys=capsys)
    assert status == 1
    assert "fig3: 2/2 rows" in out
    assert "second: 0/1 rows" in out
    assert "second/c failed: no data; name its folder with --data" in err
    assert "rankcast experiment run --all --quick" in err
    assert not (folder / "fig3" / "result.json").exists()  # quick results are not committed
    (folder / "second" / "ok").touch()
    assert call("run", "--all", "--quick", "--workers", "1", capsys=capsys)[0] == 0
    assert calls(folder, "fig3") == ["a", "b"]
    _, out, _ = call("report", "second", "--quick", "--json", capsys=capsys)
    assert json.loads(out)[0]["command"] == "rankcast experiment run second --quick"


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
        (("list", "--experiments", "nowhere"), "holds no experiments"),
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
        seen.append((output, [one.experiment.name for one in presented]))
        return output / "index.html"

    report = SimpleNamespace(write_report=write_report)
    monkeypatch.setitem(__import__("sys").modules, "rankcast.experiment.report", report)
    status, out, _ = call("report", capsys=capsys)
    assert status == 0
    assert seen == [(tmp_path / "runs" / "experiments" / "report", ["fig3", "second"])]
    assert out.strip().endswith("index.html")
    call("report", "second", "--output", str(tmp_path / "page"), capsys=capsys)
    assert seen[1] == (tmp_path / "page", ["second"])


@pytest.mark.parametrize("command", ["list", "run", "report"])
def test_the_help_of_each_command_has_an_example(command: str, capsys: Any) -> None:
    status, out, _ = call(command, "--help", capsys=capsys)
    assert status == 0
    assert f"rankcast experiment {command}" in out.partition("\n")[2]
