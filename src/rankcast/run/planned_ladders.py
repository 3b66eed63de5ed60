"""One file for each of several links, as a run's policy or the exact solver plans it (torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rankcast.allocation.precision import pack_planned
from rankcast.codec.container import Container
from rankcast.codec.packing import Source, pack_at, pack_within
from rankcast.delivery.manifest import Choice
from rankcast.errors import ConfigError, InfeasibleDeadlineError
from rankcast.link.payload import budget_bits
from rankcast.records import LinkState
from rankcast.run.contents import BITS_OF_FLOAT32
from rankcast.run.file_options import Texts
from rankcast.run.folder import RunFolder
from rankcast.run.learners import workplace
from rankcast.run.measuring import RESERVE_BITS, measured
from rankcast.run.planning import Planner


@dataclass(frozen=True)
class PlannedLadders:
    """Files, and who gets which.

    Attributes:
        containers: distinct files, each measured on the run's validation texts.
        choices: of the policy for each link; empty where the solver planned.
        left_out_db: links over which nothing arrives in time [dB].
    """

    containers: tuple[Container, ...]
    choices: tuple[Choice, ...]
    left_out_db: tuple[float, ...]


def planned_ladders(
    run: Path,
    by: Literal["policy", "solver"],
    snr_db: Sequence[float],
    *,
    bandwidth_hz: float | None = None,
    deadline_s: float | None = None,
    on_link: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> PlannedLadders:
    """Plan, pack and measure a file for each link.

    The policy chooses ranks, which are coded as finely as pays and the link allows; the solver
    chooses ranks and steps together, by the gains that the run has learned. A link over which
    nothing arrives is left out.

    Args:
        run: folder of a run with a policy.
        by: who plans.
        snr_db: received Es/N0 of the links [dB].
        bandwidth_hz: of the links; the run's own if None.
        deadline_s: of transfers; the run's own if None.
        on_link: called with the number of links that are done.

    Raises:
        CheckpointError: no run, or no policy in it.
        ConfigError: a run without learned gains, for the solver.
        InfeasibleDeadlineError: over none of the links anything arrives.
    """
    planner, place = Planner.load(RunFolder(run)), workplace(run, Texts())
    learner = place.learner()
    made: list[Container] = []
    choices: list[Choice] = []
    left_out: list[float] = []
    refused: InfeasibleDeadlineError | None = None
    for done, value in enumerate(sorted(snr_db), start=1):
        link = planner.link(value, bandwidth_hz, deadline_s)
        try:
            packed = _packed(planner, place.source, link, by)
        except InfeasibleDeadlineError as error:
            refused = error
            left_out.append(value)
            on_link(done)
            continue
        found = measured(packed, learner)
        if found not in made:
            made.append(found)
        rate = float(planner.problem.link_costs.rate_bps(link)[0])
        choices.append(Choice(rate, value, float(link.bandwidth_hz[0]), made.index(found)))
        on_link(done)
    if not made and refused is not None:
        raise refused
    chosen = tuple(choices) if by == "policy" else ()
    return PlannedLadders(tuple(made), chosen, tuple(left_out))


def _packed(
    planner: Planner, source: Source, link: LinkState, by: Literal["policy", "solver"]
) -> Container:
    rate = planner.problem.link_costs.rate_bps(link)[0]
    budget = float(budget_bits(rate, link.deadline_s[0])) - RESERVE_BITS
    if by == "policy":
        ranks = planner.plan(link).ranks
        if not ranks.any():
            least = min(p.d_in + p.d_out for p in source.tensors.projections)
            raise InfeasibleDeadlineError(BITS_OF_FLOAT32 * least, budget)
        cut = replace(source, tensors=source.tensors.truncated(ranks))
        fine = pack_at(cut, "fine")  # finer steps cost bits and bring nothing
        return fine if 8 * len(fine.to_bytes()) <= budget else pack_within(cut, budget)
    if source.gains is None:
        raise ConfigError("The solver needs a run that has learned what its components are worth.")
    return pack_planned(source, source.gains, budget)
