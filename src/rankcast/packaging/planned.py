"""One file for each of several links, as a run's policy or the exact solver plans it (torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from rankcast.allocation.custom import load_allocator
from rankcast.codec.container import Container
from rankcast.codec.packing import Source
from rankcast.codec.planner import pack_planned, pack_within
from rankcast.errors import InfeasibleDeadlineError
from rankcast.link.costs import budget_bits
from rankcast.packaging.measure import measured_within, setup_for
from rankcast.packaging.pack import pack, read_adapter
from rankcast.packaging.texts import Texts
from rankcast.records import IntArray
from rankcast.release.manifest import Choice
from rankcast.training.planner import load_policy


@dataclass(frozen=True)
class PlannedFiles:
    """Files, and which links get which.

    Attributes:
        containers: distinct files, each measured on the run's validation texts.
        choices: of the policy for each link; empty where the solver planned.
        left_out_db: links over which nothing arrives in time [dB].
    """

    containers: tuple[Container, ...]
    choices: tuple[Choice, ...]
    left_out_db: tuple[float, ...]


def planned_files(
    run: Path,
    by: Literal["policy", "solver"],
    snr_db: Sequence[float],
    *,
    bandwidth_hz: float | None = None,
    deadline_s: float | None = None,
    allocator: str | None = None,
    on_link: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> PlannedFiles:
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
        allocator: `package.module:Class` that chooses ranks in the place of the policy.
        on_link: called with the number of links that are done.

    Raises:
        CheckpointError: no run, or no policy in it.
        ConfigError: a run without learned gains, for the solver; no such allocator.
        InfeasibleDeadlineError: over none of the links anything arrives.
    """
    planner, source = load_policy(run), read_adapter(run)
    own = None if allocator is None else load_allocator(allocator, planner.problem)
    learner = setup_for(source, run, Texts()).learner()
    files: list[Container] = []
    choices: list[Choice] = []
    left_out: list[float] = []
    refused: InfeasibleDeadlineError | None = None
    for done, value in enumerate(sorted(snr_db), start=1):
        link = planner.link(value, bandwidth_hz, deadline_s)
        rate = float(planner.problem.link_costs.rate_bps(link)[0])
        try:
            plan = planner.plan(link, own) if by == "policy" else None
            if plan is not None and planner.plans_levels:
                fit = partial(planner.file, plan, link)
            else:
                fit = partial(_packed, source, None if plan is None else plan.ranks)
            file = measured_within(fit, learner, float(budget_bits(rate, link.deadline_s[0])))
        except InfeasibleDeadlineError as error:
            refused = error
            left_out.append(value)
        else:
            if file not in files:
                files.append(file)
            choices.append(Choice(rate, value, float(link.bandwidth_hz[0]), files.index(file)))
        on_link(done)
    if not files and refused is not None:
        raise refused
    chosen = tuple(choices) if by == "policy" else ()
    return PlannedFiles(tuple(files), chosen, tuple(left_out))


def _packed(source: Source, ranks: IntArray | None, budget: float) -> Container:
    """Return the adapter within a number of bits, planned if ranks are None."""
    if ranks is None:
        return pack_planned(source, budget)
    if not ranks.any():
        least = min(p.d_in + p.d_out for p in source.tensors.projections)
        raise InfeasibleDeadlineError(32 * least, budget)
    cut = replace(source, tensors=source.tensors.truncated(ranks))
    fine = pack(cut, quality="fine")  # finer steps cost bits and bring nothing
    return fine if fine.n_bits <= budget else pack_within(cut, budget)
