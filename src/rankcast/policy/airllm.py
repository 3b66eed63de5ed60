"""The policy: PPO proposes how much and roughly where, DDIM decides exactly where.

`AirLLM.act` is lines 4–11 of Algorithm 1: proposal, refinement, decoding. Everything that can be
left out or replaced for a comparison is a setting, so that each variant of the paper's Table III is
this class.

Shapes: `B` states, `N` projections, `K` numbers of the coarse action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rankcast.allocation.problem import AllocationProblem
from rankcast.allocation.text_gains import NOMINAL_ENTROPY, NOMINAL_OOV_RATE
from rankcast.config.policy import PolicyConfig, StateName
from rankcast.errors import check_choice
from rankcast.policy.ddim import NoiseSchedule, ddim_sample, ddpm_sample, guided_predict
from rankcast.policy.denoisers import ResidualMlpDenoiser, UNetDenoiser
from rankcast.policy.fast_ddim import FastSampler
from rankcast.policy.ppo import ActorCritic
from rankcast.policy.rank_code import bin_width, decode
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, Observation, TextStats

N_STATE_FEATURES = 4
NOMINAL_SNR_DB = 5.0
"""Shown for a hidden SNR; the text has nominal values, too, and a hidden rank is shown as 0."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The ranks for B states, with what training needs about how they were chosen.

    Attributes:
        ranks: (B, N) feasible ranks ã.
        actor_input: (B, 4 + N) what the actor saw.
        coarse: (B, K) a^out.
        log_prob: (B,) its log-density.
        value: (B,) V(s).
    """

    ranks: IntArray
    actor_input: Tensor
    coarse: Tensor
    log_prob: Tensor
    value: Tensor


class AirLLM:
    """A PPO actor-critic and a conditional denoiser over one allocation problem.

    As an `Allocator` it exploits: the mean coarse action, and the denoiser in its exploiting mode.

    Args:
        problem: layout, link costs, λ and deadline rule.
        config: what the policy is made of.
        seed: of the initial weights.
    """

    def __init__(
        self, problem: AllocationProblem, config: PolicyConfig | None = None, seed: int = 0
    ) -> None:
        self.problem, self.config = problem, config or PolicyConfig()
        c, n = self.config, problem.layout.n_projections
        self.mask = StateMask.for_problem(problem, c.blind)
        self.describe = CoarseDescription.of_layout(problem.layout, c.depth_groups)
        self.schedule = NoiseSchedule.named(c.diffusion.schedule, c.diffusion.training_steps)
        self.actor_critic = ActorCritic(
            N_STATE_FEATURES + n,
            self.describe.size if self.refines else n,
            torch.Generator().manual_seed(seed),
            c.actor_hidden,
            c.initial_log_std if self.refines else -0.5,
        )
        self.denoiser = self._build_denoiser(seed)
        # A running mean of the trained weights acts: it does not follow every batch.
        self.acting_denoiser = self._build_denoiser(seed)
        self._fast: FastSampler | None = None

    @property
    def name(self) -> str:
        """A short name that says which parts are in use."""
        c = self.config
        if not self.refines:
            return "ppo"
        parts = ([] if c.proposal == "none" else ["ppo"]) + [c.refinement]
        return "+".join(parts) + ("/unet" if c.denoiser == "unet" else "")

    @property
    def refines(self) -> bool:
        """Whether a denoiser decides, or PPO's action is decoded directly."""
        return self.config.refinement != "none"

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; see `Allocator`."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.act(observation, generator, explore=False).ranks

    @torch.no_grad()
    def act(
        self, observation: Observation, generator: torch.Generator, *, explore: bool
    ) -> Decision:
        """Return a decision for B states (Algorithm 1, lines 4–11).

        Args:
            observation: the states s_t.
            generator: source of the coarse action and of x_T.
            explore: sample the coarse action and tell the denoiser to explore.

        Raises:
            InfeasibleDeadlineError: not even the smallest plan arrives in time.
        """
        # Line 4: the coarse action a^out.
        seen = self.actor_input(observation)
        coarse = self.actor_critic.act(seen, generator if explore else None)
        # Lines 5–10: from noise to a code, under the state and the coarse action.
        code = coarse.action
        if self.refines:
            condition = self.condition(observation, coarse.action, explore=explore)
            code = self.refine(condition, generator)
        # Line 11: decode, and keep to the deadline (Eq. 7), which the paper only penalises.
        ranks = decode(code, self.problem.layout.r_max).numpy()
        feasible = self.problem.settle(ranks, observation, self._worth(code))
        return Decision(feasible, seen, coarse.action, coarse.log_prob, coarse.value)

    def refine(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Return the (B, N) code at the end of the reverse chain (Algorithm 1, lines 5–10)."""
        d, shape = self.config.diffusion, (len(condition), self.problem.layout.n_projections)
        x_T = torch.randn(shape, generator=generator)
        scale = 0.0 if self.config.proposal == "none" else d.guidance_scale
        network = self.acting_denoiser
        deterministic = self.config.refinement == "ddim" and d.eta == 0.0
        if deterministic and isinstance(network, ResidualMlpDenoiser):
            return self._fast_sampler(network, scale).sample(x_T, condition)
        predict = guided_predict(network, condition, scale)
        if self.config.refinement == "ddpm":
            return ddpm_sample(
                predict, x_T, self.schedule, generator=generator, steps=d.inference_steps,
                prediction=d.prediction, spacing=d.spacing,
            )  # fmt: skip
        return ddim_sample(
            predict, x_T, self.schedule, steps=d.inference_steps, prediction=d.prediction,
            eta=d.eta, spacing=d.spacing, generator=generator,
        )  # fmt: skip

    def actor_input(self, observation: Observation) -> Tensor:
        """Return the (B, 4 + N) input of actor and critic."""
        return _tensor(actor_features(self.mask(observation), self.problem))

    def lesson_input(
        self, features: FloatArray, received: IntArray | None, rng: np.random.Generator
    ) -> Tensor:
        """Return the (B, 4 + N) input of the actor for states of a lesson.

        Unless only the increase of rank is paid for, the best plan does not depend on the active
        ranks; random ones teach the actor so.

        Args:
            features: (B, 4) state features.
            received: (B, N) ranks that the device has, or None where plans do not depend on them.
            rng: source of random ranks.
        """
        r_max = self.problem.layout.r_max
        if received is None:
            ranks = rng.uniform(-1.0, 1.0, (len(features), self.problem.layout.n_projections))
            if "ranks" in self.config.blind:
                ranks[:] = -1.0
        else:
            ranks = 2.0 * received / r_max - 1.0
        return _tensor(np.concatenate([features, ranks], axis=1))

    def condition(self, observation: Observation, coarse: Tensor, *, explore: bool) -> Tensor:
        """Return the denoiser's (B, 5 + K) condition: state, whether to explore, proposal."""
        seen = state_features(self.mask(observation), self.problem)
        return make_condition(seen, coarse, explore=explore)

    def follow_trained(self, decay: float) -> None:
        """Move the acting denoiser towards the trained one, by 1 - decay of the way."""
        acting = list[Tensor](self.acting_denoiser.parameters())
        trained = [p.detach() for p in self.denoiser.parameters()]
        get_ema_multi_avg_fn(decay)(acting, trained, torch.tensor(0))
        self._fast = None

    def state_dict(self) -> dict[str, Any]:
        """Return all weights."""
        return {
            "actor_critic": self.actor_critic.state_dict(),
            "denoiser": self.denoiser.state_dict(),
            "acting_denoiser": self.acting_denoiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load all weights."""
        self.actor_critic.load_state_dict(state["actor_critic"])
        self.denoiser.load_state_dict(state["denoiser"])
        self.acting_denoiser.load_state_dict(state["acting_denoiser"])
        self._fast = None

    def _worth(self, code: Tensor) -> FloatArray:
        """Return the (B, N, R) worth that a code implies for each component, to cut a late plan.

        A component is worth the less the higher it is above the code's own, unrounded rank. Gains
        are judged by the bit, so they are given in proportion to the bits.
        """
        layout = self.problem.layout
        rank = (code.double().numpy() + 1.0) / bin_width(layout.r_max) - 0.5
        above = np.arange(1, layout.r_max + 1) - rank[..., None]
        return np.exp(-above) * self.problem.link_costs.component_bits

    def _fast_sampler(self, network: ResidualMlpDenoiser, guidance_scale: float) -> FastSampler:
        """Return the folded chain of the acting weights."""
        if self._fast is None:
            d = self.config.diffusion
            self._fast = FastSampler.from_denoiser(
                network, self.schedule, d.inference_steps, guidance_scale,
                d.prediction, spacing=d.spacing,
            )  # fmt: skip
        return self._fast

    def _build_denoiser(self, seed: int) -> ResidualMlpDenoiser | UNetDenoiser:
        c, n = self.config, self.problem.layout.n_projections
        n_visible = N_STATE_FEATURES + 1
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator
            torch.manual_seed(seed)
            if c.denoiser == "mlp":
                return ResidualMlpDenoiser(
                    n, n_visible + self.describe.size, c.hidden, c.blocks, n_visible=n_visible
                )
            return UNetDenoiser(
                n, n_visible + self.describe.size, c.unet_depth, c.unet_kernel,
                channels=c.unet_channels, n_visible=n_visible,
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class CoarseDescription:
    """The linear map from a plan to its coarse description, which is also PPO's action.

    The coarse action must mean something, or PPO's gradient is noise by the time it has passed the
    denoiser. It is the mean rank code of the plan per group of neighbouring layers and per kind of
    projection. The denoiser learns it by hindsight: each plan it is shown comes with its
    description.

    Differs from the paper, where a^out is a latent of dimension 6L without stated meaning.

    Attributes:
        weights: (K, N), each row the average over one group of projections.
        names: K names of the groups.
        r_max: largest rank.
    """

    weights: FloatArray
    names: tuple[str, ...]
    r_max: int

    @classmethod
    def of_layout(cls, layout: AdapterLayout, depth_groups: int = 3) -> CoarseDescription:
        """Group the projections by depth (at most `depth_groups` groups) and by kind."""
        layers = sorted({p.layer for p in layout.projections})
        groups = min(depth_groups, len(layers))
        group_of = {layer: i * groups // len(layers) for i, layer in enumerate(layers)}
        depth = np.array([group_of[p.layer] for p in layout.projections])
        kind = np.array([layout.kinds.index(p.kind) for p in layout.projections])
        members = [depth == g for g in range(groups)]
        names = [f"depth {g + 1}/{groups}" for g in range(groups)]
        if len(layout.kinds) > 1:
            members += [kind == k for k in range(len(layout.kinds))]
            names += list(layout.kinds)
        table = np.array(members, dtype=np.float64)
        return cls(table / table.sum(axis=1, keepdims=True), tuple(names), layout.r_max)

    @property
    def size(self) -> int:
        """K."""
        return len(self.names)

    def __call__(self, ranks: IntArray) -> FloatArray:
        """Return the (B, K) description of (B, N) ranks, in [-1, 1]."""
        code = bin_width(self.r_max) * (np.asarray(ranks) + 0.5) - 1.0
        return code @ self.weights.T


def state_features(observation: Observation, problem: AllocationProblem) -> FloatArray:
    """Return the (B, 4) numbers that a plan depends on, each of order one.

    They are the log10 of η at full rank (the price of the link, through which bandwidth, deadline
    and rate act; limited to four decades either side of 1), SNR / 10 dB, lexical entropy around
    2.5 nats, and OOV rate.
    """
    link, text = observation.link, observation.text
    full_cost = problem.link_costs.full_bits / problem.link_costs.budget_bits(link)
    return np.column_stack(
        [
            np.clip(np.log10(full_cost), -4.0, 4.0),
            link.snr_db / 10.0,
            text.lexical_entropy - NOMINAL_ENTROPY,
            text.oov_rate,
        ]
    )


def actor_features(observation: Observation, problem: AllocationProblem) -> FloatArray:
    """Return (B, 4 + N): the state features and the active ranks, mapped to [-1, 1]."""
    ranks = 2.0 * observation.ranks / problem.layout.r_max - 1.0
    return np.concatenate([state_features(observation, problem), ranks], axis=1)


def make_condition(
    features: FloatArray, coarse: Tensor, *, explore: bool | np.ndarray[Any, Any]
) -> Tensor:
    """Return (B, 5 + K): state features (B, 4), whether to explore, coarse description (B, K)."""
    flag = np.broadcast_to(np.asarray(explore, dtype=np.float64), (len(features),))
    return torch.cat([_tensor(features), _tensor(flag[:, None]), coarse], dim=1)


@dataclass(frozen=True, slots=True)
class StateMask:
    """Hides parts of the state from the policy, to measure what each of them buys.

    A hidden part is shown at its nominal value. Features are computed from what is shown, so that a
    hidden SNR does not come back through the price of the link. Only the policy sees the masked
    state: whether a plan arrives, what it costs and what the teacher solves follow the true one.

    Attributes:
        hidden: the parts that are not shown.
        bandwidth_hz: nominal W [Hz].

    Raises:
        ConfigError: an unknown part.
    """

    hidden: tuple[StateName, ...]
    bandwidth_hz: float

    def __post_init__(self) -> None:
        """Refuse unknown parts."""
        for name in self.hidden:
            check_choice("part of the state", name, get_args(StateName))

    @classmethod
    def for_problem(
        cls, problem: AllocationProblem, hidden: tuple[StateName, ...] = ()
    ) -> StateMask:
        """Return one whose nominal bandwidth carries full rank in 1 s at the nominal SNR."""
        one_hz = LinkState(np.array([NOMINAL_SNR_DB]), np.array(1.0), np.array(1.0))
        costs = problem.link_costs
        return cls(hidden, costs.full_bits / costs.budget_bits(one_hz).item())

    def __call__(self, observation: Observation) -> Observation:
        """Return B states as the policy sees them; the same object where nothing is hidden."""
        if not self.hidden:
            return observation
        link, text, size = observation.link, observation.text, observation.link.size

        def shown(name: StateName, value: FloatArray, nominal: float) -> FloatArray:
            return np.full(size, nominal) if name in self.hidden else value

        ranks = observation.ranks
        return Observation(
            LinkState(
                shown("snr", link.snr_db, NOMINAL_SNR_DB),
                shown("bandwidth", link.bandwidth_hz, self.bandwidth_hz),
                link.deadline_s,
            ),
            TextStats(
                shown("entropy", text.lexical_entropy, NOMINAL_ENTROPY),
                shown("oov", text.oov_rate, NOMINAL_OOV_RATE),
            ),
            np.zeros_like(ranks) if "ranks" in self.hidden else ranks,
        )


def _tensor(array: FloatArray) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)
