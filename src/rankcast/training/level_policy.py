"""A policy for the files of one training: which projections each link gets from which of them.

Between the sizes that were trained lie links that carry more than one of them and less than the
next. Once the files are made, a policy learns on them what versions of a projection are worth
(Algorithm 1; nothing of the model trains any more), and plans fill what each link carries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rankcast.adapters.arrays import load_tensors
from rankcast.codec.container import Container
from rankcast.codec.versions import Versions
from rankcast.config.codec import LEAST_BYTES
from rankcast.config.run import EnvConfig, RunConfig
from rankcast.env.mdp import AllocationMdp
from rankcast.errors import InfeasibleDeadlineError
from rankcast.learner.protocol import Evaluation
from rankcast.learner.transformer import TransformerLearner
from rankcast.learner.version_learner import VersionLearner
from rankcast.link.build import expected_db, link_states, snr_process
from rankcast.link.costs import budget_bits
from rankcast.link.rate_models import rate_model_of
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.training.planner import Planner, problem_of_versions


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """What a link gets.

    Attributes:
        snr_db: of the link [dB].
        budget_bytes: that arrive in time.
        n_bytes: of the plan's file, header included.
        planned: what it is worth on held-out texts.
        largest_bytes: of the largest file of the training that arrives, or of one without any
            component.
        largest: what that is worth.
    """

    snr_db: float
    budget_bytes: int
    n_bytes: int
    planned: Evaluation
    largest_bytes: int
    largest: Evaluation

    def to_plain(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "snr_db": self.snr_db,
            "budget_bytes": self.budget_bytes,
            "bytes": self.n_bytes,
            **self.planned.to_plain(),
            "largest_bytes": self.largest_bytes,
            **self.largest.to_plain("_largest"),
        }


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


def learn_plans(
    learner: TransformerLearner,
    versions: Versions,
    config: RunConfig,
    *,
    on_episode: Callable[[int], None] = lambda done: None,  # noqa: ARG005
    should_stop: Callable[[], bool] = lambda: False,
) -> Planner | None:
    """Return a policy that has learned what versions of projections are worth.

    Args:
        learner: of the training that is over.
        versions: of its files.
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
    problem = problem_of_versions(versions, learner.layout, link)
    problem.require_feasible(link_states(link, expected_db(process, link)))
    env = AllocationMdp(
        VersionLearner(learner, problem, versions),
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
    text = trainer.teacher.mean_text()
    return Planner(problem, policy, trainer.utility, text, config, versions)


def judge_plans(planner: Planner, learner: TransformerLearner) -> Sequence[PlannedLink]:
    """Return what each of the run's links gets, on the validation texts; those of none left out.

    Args:
        planner: of the run, of levels.
        learner: to judge with; it has the adapter of another file afterwards.
    """
    assert planner.versions is not None
    worths: dict[bytes, Evaluation] = {}

    def worth(file: Container) -> Evaluation:
        if (key := file.to_bytes()) not in worths:
            load_tensors(learner.adapter, file.tensors())
            worths[key] = learner.evaluate("validation")
        return worths[key]

    found = []
    for snr_db in planner.config.link.iid.values_db:
        link = planner.link(snr_db)
        try:
            planned = planner.file(planner.plan(link), link)
        except InfeasibleDeadlineError:
            continue
        budget_bits = float(planner.problem.link_costs.budget_bits(link)[0])
        largest = planner.versions.largest_within(budget_bits)
        found.append(
            PlannedLink(
                snr_db,
                int(budget_bits // 8),
                planned.n_bits // 8,
                worth(planned),
                largest.n_bits // 8,
                worth(largest),
            )
        )
    return found
