"""A trained policy that answers with a plan for each link, without the base model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.level_problem import LevelProblem
from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.allocation.saturating import make_utility
from rankcast.codec.container import Container, load
from rankcast.codec.levels import Levels
from rankcast.codec.versions import Versions
from rankcast.config.link import LinkConfig
from rankcast.config.run import RunConfig
from rankcast.errors import CheckpointError, ConfigError
from rankcast.link.rate_models import rate_model_of
from rankcast.policy.airllm import AirLLM
from rankcast.records import (
    AdapterLayout,
    IntArray,
    LinkState,
    Observation,
    Plan,
    Projection,
    TextStats,
)
from rankcast.training.folder import RunFolder, load_state, save_state


@dataclass(frozen=True)
class Planner:
    """Plans for a link by a trained policy.

    Attributes:
        problem: layout, link costs and deadline rule.
        policy: the trained policy.
        utility: what was learned about the gains.
        text: mean statistics of the texts that were trained on, (1,) each.
        config: the run that it was trained in. Its seed is that of the noise from which the policy
            starts, so that the same link gets the same plan.
        versions: files whose levels it plans; None if it plans ranks.
    """

    problem: AllocationProblem
    policy: AirLLM
    utility: LearnedUtility
    text: TextStats
    config: RunConfig
    versions: Versions | None = None

    def save(self, folder: RunFolder) -> None:
        """Write the policy into the run's folder."""
        state = {
            "policy": self.policy.state_dict(),
            "utility": self.utility.state_dict(),
            "layout": [asdict(p) for p in self.problem.layout.projections],
            "text": [float(self.text.lexical_entropy[0]), float(self.text.oov_rate[0])],
        }
        if isinstance(self.problem, LevelProblem):  # measuring their bits takes a second or two
            levels = self.problem.levels
            state["levels"] = {f.name: getattr(levels, f.name) for f in fields(levels)}
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

    @property
    def plans_levels(self) -> bool:
        """Whether it plans levels of coded files, and not ranks."""
        return self.versions is not None

    def file(self, plan: Plan, link: LinkState, budget_bits: float | None = None) -> Container:
        """Return the file of a plan of levels, which arrives over its link in time.

        Args:
            plan: for the link.
            link: a single link.
            budget_bits: that the file may have; what arrives in time if None.

        Raises:
            ConfigError: a policy of ranks; `rankcast.packaging.planned` packs those.
        """
        if self.versions is None or not isinstance(self.problem, LevelProblem):
            raise ConfigError("This policy plans ranks, not levels: pack them with --planned.")
        if budget_bits is None:
            budget_bits = float(self.problem.link_costs.budget_bits(link)[0])
        worth = self.problem.worth(self.utility.mean_gains(self.text)[0], link)
        return self.versions.file_within(plan.ranks, worth, budget_bits)

    def ranks(self, plan: Plan) -> IntArray:
        """Return the (N,) ranks of a plan, which may be of levels."""
        if isinstance(self.problem, LevelProblem):
            return self.problem.levels.chosen(plan.ranks)[0]
        return plan.ranks

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
        """Return a plan with its link and the names of the projections, for JSON."""
        names = [p.name for p in self.problem.layout.projections]
        return {
            "snr_db": float(link.snr_db[0]),
            "bandwidth_hz": float(link.bandwidth_hz[0]),
            "deadline_s": float(link.deadline_s[0]),
            "rate_bps": plan.rate_bps,
            "arrives": plan.arrives,
            **cost_of(plan),
            "ranks": dict(zip(names, self.ranks(plan).tolist(), strict=True)),
            **(
                {"levels": dict(zip(names, plan.ranks.tolist(), strict=True))}
                if isinstance(self.problem, LevelProblem)
                else {}
            ),
        }


def cost_of(plan: Plan) -> dict[str, float]:
    """Return what a plan costs on its link, for JSON."""
    return {
        "mean_rank": float(plan.ranks.mean()),
        "payload_bits": plan.payload_bits,
        "transmission_time_s": plan.transmission_time_s,
        "link_cost": plan.link_cost,
    }


def load_policy(run: Path | RunFolder) -> Planner:
    """Return the trained policy of a run.

    Args:
        run: its folder.

    Raises:
        CheckpointError: no run, no policy in it yet, or one of another configuration.
        CodecError: a file whose levels the policy plans is missing or damaged.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    config, state = folder.load_config(of_levels=True), load_state(folder.policy)
    projections = tuple(Projection(**plain) for plain in state["layout"])
    layout = AdapterLayout(projections, config.finetune.r_max)
    problem, versions = AllocationProblem.from_config(config.link, layout), None
    if config.codec.plan_episodes:
        versions = Versions.of(map(load, folder.files(config)))
        tables: dict[str, Any] = {name: np.array(x) for name, x in state["levels"].items()}
        problem = problem_of_versions(versions, layout, config.link, Levels(**tables))
    layout = problem.layout
    policy = AirLLM(problem, config.policy, config.seed)
    utility = make_utility(
        layout,
        config.training.utility,
        problem.component_weights,
        config.policy.blind,
        problem.expected_gains,
    )
    utility.load_state_dict(state["utility"])
    try:
        policy.load_state_dict(state["policy"])
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{folder.policy} is the policy of another configuration than {folder.config}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    text = TextStats(*(np.array([value]) for value in state["text"]))
    return Planner(problem, policy, utility, text, config, versions)


def problem_of_versions(
    versions: Versions, layout: AdapterLayout, link: LinkConfig, levels: Levels | None = None
) -> LevelProblem:
    """Return the problem whose levels, measured if None, are the versions of each projection."""
    return LevelProblem.of(
        levels or versions.levels(), layout, rate_model_of(link), link.link_weight, link.deadline,
        wholes=versions.wholes,
    )  # fmt: skip
