"""An allocator that somebody else wrote: found by its name, its plans checked."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.errors import ConfigError, nearest
from rankcast.records import IntArray, Observation


class CheckedAllocator:
    """An allocator whose plans are checked against the problem before anyone uses them.

    Args:
        allocator: the one that plans.
        problem: layout, bounds of the ranks and deadline rule.
    """

    def __init__(self, allocator: Allocator, problem: AllocationProblem) -> None:
        self._allocator, self._problem = allocator, problem

    @property
    def name(self) -> str:
        """The allocator's own name."""
        return self._allocator.name

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return its (B, N) ranks.

        Raises:
            ConfigError: not whole numbers of that shape, outside the bounds, or too late.
            InfeasibleDeadlineError: not even the smallest plan arrives in time.
        """
        ranks = np.asarray(self._allocator.allocate(observation, rng))
        if ranks.dtype.kind not in "iu":
            raise ConfigError(f"{self.name} must return whole ranks, got {ranks.dtype}.")
        feasible = self._problem.feasible(ranks, observation.link)
        if not np.array_equal(ranks, feasible):
            low, high = self._problem.min_rank, self._problem.layout.r_max
            raise ConfigError(
                f"{self.name} returned a plan that has ranks outside {low}..{high} or does not "
                f"arrive in time; AllocationProblem.feasible brings any plan within both."
            )
        return feasible


def load_allocator(path: str, problem: AllocationProblem) -> Allocator:
    """Return an allocator of another package, or of a module in the working directory.

    Args:
        path: `package.module:Class`; the class is called with the problem and nothing else.
        problem: layout, link costs and deadline rule.

    Raises:
        ConfigError: no such module or class, one that does not take a problem, or something that
            is no `Allocator`.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"An allocator is named package.module:Class, got {path!r}.")
    members = _members(module_name)
    if name not in members:
        known = [member for member in members if not member.startswith("_")]
        raise ConfigError(f"{module_name} has no {name!r}{nearest(name, known) or '.'}")
    try:
        allocator = members[name](problem)
    except TypeError as error:
        raise ConfigError(f"{path} must take one AllocationProblem ({error}).") from error
    if not isinstance(allocator, Allocator):
        missing = [member for member in ("name", "allocate") if not hasattr(allocator, member)]
        raise ConfigError(
            f"{path} is no Allocator: it has no {' and no '.join(missing)}. See "
            f"rankcast.allocation.problem.Allocator."
        )
    return CheckedAllocator(allocator, problem)


def _members(module: str) -> dict[str, Any]:
    """Import a module, also from the working directory, and return what is in it.

    Raises:
        ConfigError: it is not there, or fails on import.
    """
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            reason = f"There is no module {error.name!r}, neither installed nor in {here}."
        else:
            reason = f"{module} needs {error.name}, which is not installed."
        raise ConfigError(reason) from error
    except Exception as error:  # whatever the module of somebody else may raise
        raise ConfigError(
            f"{module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
