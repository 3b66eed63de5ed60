"""A trained policy with all that it needs to answer for a link; the base model is not needed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from rankcast.allocation.base import AllocationProblem, Allocator
from rankcast.allocation.saturating import make_utility
from rankcast.allocation.utility import LearnedUtility
from rankcast.errors import CheckpointError
from rankcast.policy.airllm import AirLLM
from rankcast.policy.training import AirLLMTrainer
from rankcast.records import (
    AdapterLayout,
    LinkState,
    Observation,
    Plan,
    Projection,
    TextStats,
)
from rankcast.run.config import RunConfig
from rankcast.run.folder import RunFolder, load_state, save_state


@dataclass(frozen=True)
class Planner:
    """Answers "which ranks, for this link?".

    Attributes:
        problem: layout, link costs and deadline rule.
        policy: the trained policy.
        utility: what was learned about the gains.
        text: mean statistics of the texts that were trained on, (1,) each.
        config: the run that it was trained in. Its seed is that of the noise from which the policy
            starts, so that the same link gets the same plan.
    """

    problem: AllocationProblem
    policy: AirLLM
    utility: LearnedUtility
    text: TextStats
    config: RunConfig

    @classmethod
    def of_trainer(cls, trainer: AirLLMTrainer, config: RunConfig) -> Planner:
        """Take a policy as it stands in training."""
        states = trainer.teacher.state_dict()["states"]
        text = TextStats(states[:, 3].mean(keepdims=True), states[:, 4].mean(keepdims=True))
        return cls(trainer.policy.problem, trainer.policy, trainer.utility, text, config)

    @classmethod
    def load(cls, folder: RunFolder) -> Planner:
        """Read the policy of a run.

        Raises:
            CheckpointError: no run, no policy in it yet, or one of another configuration.
        """
        config, state = folder.load_config(), load_state(folder.policy)
        layout = AdapterLayout(
            tuple(Projection(**p) for p in state["layout"]), config.finetune.r_max
        )
        problem = config.link.problem(layout)
        policy = AirLLM(problem, config.policy, config.seed)
        utility = make_utility(layout, config.training.utility)
        utility.load_state_dict(state["utility"])
        try:
            policy.load_state_dict(state["policy"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{folder.policy} is the policy of another configuration than {folder.config}: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        text = TextStats(*(np.array([value]) for value in state["text"]))
        return cls(problem, policy, utility, text, config)

    def save(self, folder: RunFolder) -> None:
        """Write the policy into the run's folder."""
        state = {
            "policy": self.policy.state_dict(),
            "utility": self.utility.state_dict(),
            "layout": [asdict(p) for p in self.problem.layout.projections],
            "text": [float(self.text.lexical_entropy[0]), float(self.text.oov_rate[0])],
        }
        save_state(folder.policy, state)

    def plan(self, link: LinkState, allocator: Allocator | None = None) -> Plan:
        """Return the plan for a single link by the policy, or by another allocator.

        Raises:
            InfeasibleDeadlineError: not even the smallest plan arrives in time.
        """
        ranks = np.zeros((1, self.problem.layout.n_projections), dtype=np.int64)
        observation = Observation(link, self.text, ranks)
        chosen = (allocator or self.policy).allocate(
            observation, np.random.default_rng(self.config.seed)
        )
        return self.problem.link_costs.plan(chosen[0], link)

    def link(
        self, snr_db: float, bandwidth_hz: float | None = None, deadline_s: float | None = None
    ) -> LinkState:
        """Return one link; bandwidth and deadline are the run's own unless given.

        Raises:
            LinkError: NaN or infinite SNR; bandwidth or deadline not positive and finite.
        """
        own = self.config.link
        return LinkState(
            np.array([snr_db]),
            np.array([own.bandwidth_hz if bandwidth_hz is None else bandwidth_hz]),
            np.array([own.deadline_s if deadline_s is None else deadline_s]),
        )

    def describe(self, plan: Plan, link: LinkState) -> dict[str, object]:
        """Return a plan with its link and names, for machines."""
        names = [p.name for p in self.problem.layout.projections]
        return {
            "snr_db": float(link.snr_db[0]),
            "bandwidth_hz": float(link.bandwidth_hz[0]),
            "deadline_s": float(link.deadline_s[0]),
            "payload_bits": plan.payload_bits,
            "rate_bps": plan.rate_bps,
            "transmission_time_s": plan.transmission_time_s,
            "link_cost": plan.link_cost,
            "arrives": plan.arrives,
            "mean_rank": float(plan.ranks.mean()),
            "ranks": dict(zip(names, plan.ranks.tolist(), strict=True)),
        }
