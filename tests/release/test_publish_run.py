"""A run published as files for several links, planned by its policy or by the exact solver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Call
from rankcast.release.manifest import Manifest
from rankcast.release.plan import plan_fetch

LINKS = ("-5", "5", "15")


@pytest.fixture
def where(tmp_path: Path, call: Call) -> list[str]:
    options = ["--keys", str(tmp_path / "keys"), "--store", str(tmp_path / "store")]
    call.ok("keys", "init", *options)
    return options


def published(where: list[str], trained: Path, planner: str, call: Call) -> Manifest:
    args = ("publish", str(trained), "--name", "tiny", *where, "--planner", planner)
    out = call.ok(*args, "--snr-db", *LINKS, "--json")
    assert json.loads(out)["planner"] == planner
    store = Path(where[-1])
    (file,) = (store / "targets" / "adapters").glob("*.json")
    return Manifest.from_bytes(file.read_bytes())


def test_devices_get_what_the_policy_chose_for_their_link(
    trained: Path, where: list[str], call: Call
) -> None:
    release = published(where, trained, "policy", call)
    assert len(release.choices) == len(LINKS)
    assert [c.snr_db for c in release.choices] == [-5.0, 5.0, 15.0]
    for choice in release.choices:
        chunks = release.files[choice.file_index].chunks
        assert all(chunk.loss is not None for chunk in chunks)
        plan = plan_fetch(release, 1e12, frozenset(), choice.rate_bps)
        assert (plan.file_index, plan.planner) == (choice.file_index, "policy")


def test_an_allocator_of_ones_own_plans_in_the_place_of_the_policy(
    trained: Path, where: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    (tmp_path / "publishers_allocators.py").write_text(
        "import numpy as np\n"
        "class Lowest:\n"
        "    name = 'lowest'\n"
        "    def __init__(self, problem):\n"
        "        self.problem = problem\n"
        "    def allocate(self, observation, rng):\n"
        "        ones = np.ones((observation.link.size, self.problem.layout.n_projections), int)\n"
        "        return self.problem.feasible(ones, observation.link)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = ("publish", str(trained), "--name", "tiny", *where, "--snr-db", *LINKS, "--json")
    own = ("--allocator", "publishers_allocators:Lowest")
    out = call.ok(*args, *own)
    assert (json.loads(out)["planner"], json.loads(out)["ladders"]) == ("policy", 1)
    assert "not both" in call.refused(*args, *own, "--planner", "solver")


def test_the_solvers_files_are_compared_by_what_they_are_worth(
    trained: Path, where: list[str], call: Call
) -> None:
    release = published(where, trained, "solver", call)
    assert release.choices == ()
    plan = plan_fetch(release, 1e12, frozenset(), 1.0)
    losses = [chunk.loss for file in release.files for chunk in file.chunks]
    assert plan.loss == min(losses, key=lambda loss: float("inf") if loss is None else loss)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--planner", "policy"], "its links"),
        (["--snr-db", "5"], "say who plans"),
        (["--planner", "policy", "--snr-db", "-200"], "deadline"),
    ],
)
def test_half_a_question_is_refused(
    trained: Path, where: list[str], options: list[str], words: str, call: Call
) -> None:
    assert words in call.refused("publish", str(trained), "--name", "tiny", *where, *options)


def test_keys_are_looked_at_before_minutes_of_planning(
    trained: Path, where: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("rankcast.packaging.planned.planned_files", plan)
    for key in Path(where[1]).glob("targets-*.pem"):
        key.unlink()
    args = (
        "publish",
        str(trained),
        "--name",
        "tiny",
        *where,
        "--planner",
        "policy",
        "--snr-db",
        "5",
    )
    assert "targets" in call.refused(*args)


def test_links_over_which_nothing_arrives_are_named(
    trained: Path, where: list[str], call: Call
) -> None:
    args = ("publish", str(trained), "--name", "tiny", *where, "--planner", "policy")
    status, out, err = call(*args, "--snr-db", "-200", "15", "--json")
    assert (status, json.loads(out)["ladders"]) == (0, 1)
    assert "nothing arrives in time at -200 dB" in err
