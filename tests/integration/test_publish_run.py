"""A run published as files for several links, planned by its policy or by the exact solver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import call
from rankcast.cli import main
from rankcast.delivery.manifest import Manifest
from rankcast.delivery.planning import plan_fetch
from small_runs import SMALL

LINKS = ("-5", "5", "15")


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "run"
    options = [x for key, value in SMALL.items() for x in (f"--{key.replace('_', '-')}", value)]
    with pytest.raises(SystemExit) as stopped:
        main(["train", "tiny", *map(str, options), "--output", str(folder)])
    assert stopped.value.code == 0
    return folder


@pytest.fixture
def where(tmp_path: Path, capsys: Any) -> list[str]:
    found = ["--keys", str(tmp_path / "keys"), "--store", str(tmp_path / "store")]
    assert call("keys", "init", *found, capsys=capsys)[0] == 0
    return found


def published(where: list[str], run: Path, planner: str, capsys: Any) -> Manifest:
    args = ("publish", str(run), "--name", "tiny", *where, "--planner", planner)
    status, out, err = call(*args, "--snr-db", *LINKS, "--json", capsys=capsys)
    assert status == 0, err
    assert json.loads(out)["planner"] == planner
    store = Path(where[-1])
    (file,) = (store / "targets" / "adapters").glob("*.json")
    return Manifest.from_bytes(file.read_bytes())


def test_devices_get_what_the_policy_chose_for_their_link(
    run: Path, where: list[str], capsys: Any
) -> None:
    release = published(where, run, "policy", capsys)
    assert len(release.choices) == len(LINKS)
    assert [c.snr_db for c in release.choices] == [-5.0, 5.0, 15.0]
    for choice in release.choices:
        rungs = release.ladders[choice.ladder].rungs
        assert all(rung.loss is not None for rung in rungs)
        found = plan_fetch(release, 1e12, frozenset(), choice.rate_bps)
        assert (found.ladder, found.planner) == (choice.ladder, "policy")


def test_the_solvers_files_are_compared_by_what_they_are_worth(
    run: Path, where: list[str], capsys: Any
) -> None:
    release = published(where, run, "solver", capsys)
    assert release.choices == ()
    found = plan_fetch(release, 1e12, frozenset(), 1.0)
    losses = [rung.loss for ladder in release.ladders for rung in ladder.rungs]
    assert found.loss == min(losses, key=lambda loss: float("inf") if loss is None else loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--planner", "policy"], "its links"),
        (["--snr-db", "5"], "say who plans"),
        (["--planner", "policy", "--snr-db", "-200"], "deadline"),
    ],
)
def test_half_a_question_is_refused(
    run: Path, where: list[str], options: list[str], words: str, capsys: Any
) -> None:
    status, _, err = call("publish", str(run), "--name", "tiny", *where, *options, capsys=capsys)
    assert (status, words in err) == (2, True), err
