"""What narrow links carry of a run's adapter: ranks at 32 bits a number beside coded bytes (torch).

The paper counts 32 bits a number. Over a link that carries less than a few hundred kilobytes such a
policy sends almost nothing, while ranks and steps that are chosen together, by the same learned
gains, still send most of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankcast.adapters.arrays import load_tensors
from rankcast.codec.container import Container
from rankcast.codec.packing import Source
from rankcast.codec.planner import pack_planned, pack_within
from rankcast.errors import InfeasibleDeadlineError
from rankcast.learner.protocol import Evaluation
from rankcast.learner.transformer import TransformerLearner
from rankcast.training.planner import Planner


@dataclass(frozen=True, slots=True)
class CodedLink:
    """One link.

    Attributes:
        snr_db: of the link [dB].
        budget_bytes: that arrive in time.
        ranks: what the policy's ranks are worth, each number in 32 bits, as in the paper.
        n_bytes: of the file whose ranks and steps the exact solver chooses by the gains that the
            policy has learned, header included.
        planned: what that is worth.
        one_step: what a file of about as many bytes is worth that has one step for all weights.
    """

    snr_db: float
    budget_bytes: int
    ranks: Evaluation
    n_bytes: int
    planned: Evaluation
    one_step: Evaluation


def coded_links(
    planner: Planner,
    learner: TransformerLearner,
    source: Source,
    snrs_db: Sequence[float],
    bandwidth_hz: float,
    *,
    split: str = "test",
) -> list[CodedLink]:
    """Return what each link carries; links over which no file arrives are left out.

    Args:
        planner: policy of a run, of ranks.
        learner: to judge with; it does not have the run's adapter afterwards.
        source: the run's adapter, with its learned gains.
        snrs_db: Es/N0 of the links [dB].
        bandwidth_hz: of the links [Hz]; the deadline is the run's own.
        split: whose texts judge.

    Raises:
        ConfigError: a run without learned gains.
    """
    plans = {}
    for snr_db in snrs_db:  # before the adapter is replaced
        link = planner.link(snr_db, bandwidth_hz)
        ranks = planner.ranks(planner.plan(link))
        plans[snr_db] = learner.evaluate(split, ranks)

    def judged(file: Container) -> Evaluation:
        load_tensors(learner.adapter, file.tensors())
        return learner.evaluate(split)

    found = []
    for snr_db, by_ranks in plans.items():
        budget = float(
            planner.problem.link_costs.budget_bits(planner.link(snr_db, bandwidth_hz))[0]
        )
        try:
            planned, one_step = pack_planned(source, budget), pack_within(source, budget)
        except InfeasibleDeadlineError:
            continue
        about = int(budget // 8), by_ranks, planned.n_bits // 8
        found.append(CodedLink(snr_db, *about, judged(planned), judged(one_step)))
    return found
