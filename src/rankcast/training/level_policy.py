"""A policy for a file that was trained for sizes: which of its levels each link gets.

Between the sizes that were trained lie links that carry more than one of them and less than the
next. Once the file is trained, a policy learns on it what levels are worth (Algorithm 1; nothing of
the model trains any more), and plans fill what each link carries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rankcast.adapters.arrays import load_tensors
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.container import Container
from rankcast.codec.packing import Coding, Source
from rankcast.codec.tensors import AdapterTensors
from rankcast.codec.trained_levels import trained_levels, trained_prefixes
from rankcast.config.codec import LEAST_BYTES
from rankcast.config.run import EnvConfig, RunConfig
from rankcast.env.mdp import AllocationMdp
from rankcast.errors import InfeasibleDeadlineError
from rankcast.learner.fixed_learner import FixedLearner
from rankcast.learner.protocol import Evaluation
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.build import expected_db, link_states, snr_process
from rankcast.link.costs import budget_bits
from rankcast.link.rate_models import rate_model_of
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.training.planner import Planner


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """What a link gets.

    Attributes:
        snr_db: of the link [dB].
        budget_bytes: that arrive in time.
        n_bytes: of the plan's file, header included.
        planned: what it is worth on held-out texts.
        prefix_bytes: of the largest prefix that arrives; 0 if none does.
        prefix: what that is worth; None if none arrives.
    """

    snr_db: float
    budget_bytes: int
    n_bytes: int
    planned: Evaluation
    prefix_bytes: int
    prefix: Evaluation | None

    def to_plain(self) -> dict[str, Any]:
        """Return it for machines."""
        plain = {
            "snr_db": self.snr_db,
            "budget_bytes": self.budget_bytes,
            "bytes": self.n_bytes,
            **self.planned.to_plain(),
            "prefix_bytes": self.prefix_bytes,
        }
        return plain if self.prefix is None else plain | self.prefix.to_plain("_prefix")


def check_links(config: RunConfig) -> None:
    """Check before anything is trained that links carry at least an empty file, if they matter.

    Raises:
        InfeasibleDeadlineError: over one of them not even `LEAST_BYTES` arrive in time.
        LinkError: a link that cannot be.
    """
    if not config.codec.plan_episodes:
        return
    process = snr_process(config.link)
    links = link_states(config.link, expected_db(process, config.link))
    rates_bps = links.bandwidth_hz * rate_model_of(config.link).spectral_efficiency(links.snr_db)
    least = float(budget_bits(rates_bps, links.deadline_s).min())
    if config.link.deadline == "enforce" and least < 8 * LEAST_BYTES:
        raise InfeasibleDeadlineError(8 * LEAST_BYTES, least)


def source_of(file: Container, coding: Coding) -> Source:
    """Return the adapter in a file, to the last bit: balancing it would leave the coder's grid."""
    return Source(file.tensors(), file.header.base, file.header.task).at(coding)


def learn_plans(
    learner: TransformerLearner,
    source: Source,
    config: RunConfig,
    *,
    on_episode: Callable[[int], None] = lambda done: None,  # noqa: ARG005
    should_stop: Callable[[], bool] = lambda: False,
) -> Planner | None:
    """Return a policy that has learned what the levels of a trained file are worth.

    Args:
        learner: has the adapter as decoded.
        source: that adapter, with the steps and prefixes for which it was trained.
        config: of the run: its link, its policy, and `codec.plan_episodes`.
        on_episode: called with the number of episodes that are over.
        should_stop: asked after each episode.

    Returns:
        The policy; None if it was stopped.

    Raises:
        InfeasibleDeadlineError: not even an empty file arrives over one of the links.
        LinkError: a link that cannot be.
    """
    link = config.link
    process = snr_process(link)
    levels = trained_levels(source)
    problem = LevelProblem.of(
        levels, learner.layout, rate_model_of(link), link.link_weight, link.deadline,
        prefixes=trained_prefixes(source, levels),
    )  # fmt: skip
    problem.require_feasible(link_states(link, expected_db(process, link)))
    env = AllocationMdp(
        FixedLearner(learner, problem),
        process,
        problem,
        EnvConfig(link.bandwidth_hz, link.deadline_s, config.horizon),
    )
    policy = AirLLM(problem, config.policy, config.seed)
    trainer = AirLLMTrainer(env, policy, config.training, config.seed)
    for episode in range(config.codec.plan_episodes):
        trainer.run_episode()
        on_episode(episode + 1)
        if should_stop():
            return None
    return Planner(problem, policy, trainer.utility, trainer.teacher.mean_text(), config)


def judge_plans(
    planner: Planner, learner: TransformerLearner, source: Source, file: Container
) -> Sequence[PlannedLink]:
    """Return what each of the run's links gets, on the validation texts; those of none left out.

    Args:
        planner: of the run.
        learner: to judge with; it has the whole adapter afterwards.
        source: the adapter.
        file: of it, whose prefixes plans are compared with.
    """
    worths: dict[int, Evaluation] = {}

    def worth(tensors: AdapterTensors, n_bytes: int) -> Evaluation:
        if n_bytes not in worths:
            load_tensors(learner.adapter, tensors)
            worths[n_bytes] = learner.evaluate("validation")
        return worths[n_bytes]

    found = []
    prefixes = list(zip(file.ladder, file.decoded(), strict=True))
    for snr_db in planner.config.link.iid.values_db:
        link = planner.link(snr_db)
        try:
            plan = planner.plan(link)
        except InfeasibleDeadlineError:
            continue
        budget_bits = float(planner.problem.link_costs.budget_bits(link)[0])
        planned, budget = planner.file(plan, link, source), int(budget_bits // 8)
        fitting = [(p.n_bytes, tensors) for p, (_, tensors) in prefixes if p.n_bytes <= budget]
        n_bytes, tensors = fitting[-1] if fitting else (0, None)
        load_tensors(learner.adapter, planned.tensors())
        own = learner.evaluate("validation")
        prefix = None if tensors is None else worth(tensors, n_bytes)
        found.append(PlannedLink(snr_db, budget, planned.n_bits // 8, own, n_bytes, prefix))
    load_tensors(learner.adapter, source.tensors)
    return found
