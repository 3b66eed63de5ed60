"""An allocator that somebody else wrote, by its name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.allocation import budget, row_of, state
from rankcast.allocation.custom import load_allocator
from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.errors import ConfigError
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel

SOURCE = """
import numpy as np

class Greedy:
    name = "greedy"
    def __init__(self, problem):
        self.problem = problem
    def allocate(self, observation, rng):
        full = np.full((observation.link.size, self.problem.layout.n_projections), 2)
        return self.problem.feasible(full, observation.link)

class Late(Greedy):
    def allocate(self, observation, rng):
        return np.full((observation.link.size, self.problem.layout.n_projections), 2)

class Fractions(Greedy):
    def allocate(self, observation, rng):
        return super().allocate(observation, rng) / 2

class NeedsMore(Greedy):
    def __init__(self, problem, seed):
        pass

class Nameless:
    def __init__(self, problem):
        pass
"""


@pytest.fixture
def problem() -> AllocationProblem:
    layout = row_of(3, 2)
    return AllocationProblem(layout, LinkCostModel.for_layout(layout, Awgn()))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that nobody has installed."""
    (tmp_path / "own_allocators.py").write_text(SOURCE)
    (tmp_path / "broken_allocators.py").write_text("1 / 0\n")
    (tmp_path / "needy_allocators.py").write_text("import nobody_has_this\n")
    monkeypatch.chdir(tmp_path)
    yield "own_allocators"
    for name in ("own_allocators", "broken_allocators", "needy_allocators"):
        sys.modules.pop(name, None)


def test_its_plans_are_used_as_they_are(module: str, problem: AllocationProblem) -> None:
    path = list(sys.path)
    own = load_allocator(f"{module}:Greedy", problem)
    assert isinstance(own, Allocator)
    assert own.name == "greedy"
    assert sys.path == path
    rng = np.random.default_rng(0)
    assert own.allocate(state(budget(1e6), n=3), rng).tolist() == [[2, 2, 2]]
    assert own.allocate(state(budget(1000.0), n=3), rng).sum() < 6


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_allocators", "package.module:Class"),
        ("own_allocators:Gredy", "did you mean 'Greedy'"),
        ("no_such_module:Greedy", "There is no module 'no_such_module'"),
        ("rankcast.allocation.nowhere:Greedy", "no module 'rankcast.allocation.nowhere'"),
        ("needy_allocators:Greedy", "needs nobody_has_this"),
        ("broken_allocators:Greedy", "cannot be imported: ZeroDivisionError"),
        ("own_allocators:NeedsMore", "must take one AllocationProblem"),
        ("own_allocators:Nameless", "no name and no allocate"),
        ("own_allocators:np", "must take one AllocationProblem"),
    ],
)
def test_what_is_no_allocator_says_why(
    module: str, problem: AllocationProblem, path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_allocator(path, problem)


@pytest.mark.parametrize(
    ("name", "message"), [("Late", "does not arrive in time"), ("Fractions", "whole ranks")]
)
def test_plans_that_break_the_rules_are_refused(
    module: str, problem: AllocationProblem, name: str, message: str
) -> None:
    own = load_allocator(f"{module}:{name}", problem)
    with pytest.raises(ConfigError, match=message):
        own.allocate(state(budget(1000.0), n=3), np.random.default_rng(0))
