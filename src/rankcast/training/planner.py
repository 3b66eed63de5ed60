"""A trained policy that answers with a plan for each link, without the base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.level_problem import LevelProblem
from rankcast.allocation.problem import AllocationProblem, Allocator
from rankcast.allocation.saturating import make_utility
from rankcast.codec.container import Container
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Source
from rankcast.codec.trained_levels import file_within
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
    """

    problem: AllocationProblem
    policy: AirLLM
    utility: LearnedUtility
    text: TextStats
    config: RunConfig

    def save(self, folder: RunFolder) -> None:
        """Write the policy into the run's folder."""
        state = {
            "policy": self.policy.state_dict(),
            "utility": self.utility.state_dict(),
            "layout": [asdict(p) for p in self.problem.layout.projections],
            "text": [float(self.text.lexical_entropy[0]), float(self.text.oov_rate[0])],
        }
        if isinstance(self.problem, LevelProblem):
            levels = self.problem.levels
            state["levels"] = {f.name: getattr(levels, f.name) for f in fields(levels)}
            state["prefixes"] = self.problem.prefixes
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
        """Whether it plans levels of a coded file, and not ranks."""
        return isinstance(self.problem, LevelProblem)

    def file(
        self, plan: Plan, link: LinkState, source: Source, budget_bits: float | None = None
    ) -> Container:
        """Return the file of a plan of levels, which arrives over its link in time.

        Args:
            plan: for the link.
            link: a single link.
            source: the adapter of the run.
            budget_bits: that the file may have; what arrives in time if None.

        Raises:
            ConfigError: a policy of ranks; `rankcast.packaging.planned` packs those.
            CodecError: another adapter than the one that was planned for.
        """
        if not isinstance(self.problem, LevelProblem):
            raise ConfigError("This policy plans ranks, not levels: pack them with --planned.")
        if budget_bits is None:
            budget_bits = float(self.problem.link_costs.budget_bits(link)[0])
        worth = self.problem.worth(self.utility.mean_gains(self.text)[0], link)
        return file_within(source, self.problem.levels, plan.ranks, worth, budget_bits)

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
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    config, state = folder.load_config(of_levels=True), load_state(folder.policy)
    projections = tuple(Projection(**plain) for plain in state["layout"])
    layout = AdapterLayout(projections, config.finetune.r_max)
    problem = _problem(config, layout, state)
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
    return Planner(problem, policy, utility, text, config)


def _problem(
    config: RunConfig, layout: AdapterLayout, state: Mapping[str, Any]
) -> AllocationProblem:
    """Return what the policy of a run decides: ranks, or the levels that were saved with it."""
    saved = state.get("levels")
    if saved is None:
        return AllocationProblem.from_config(config.link, layout)
    overhead_bits = float(saved["overhead_bits"])
    tables = {name: np.array(saved[name]) for name in ("ranks", "exponents", "bits", "gains")}
    levels, link = Levels(**tables, overhead_bits=overhead_bits), config.link
    rate_model = rate_model_of(link)
    prefixes = None if state["prefixes"] is None else np.array(state["prefixes"])
    return LevelProblem.of(
        levels, layout, rate_model, link.link_weight, link.deadline, prefixes=prefixes
    )
