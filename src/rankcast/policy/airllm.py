"""The policy: PPO proposes how much and roughly where, DDIM decides exactly where.

`AirLLM.act` is lines 4–11 of Algorithm 1. Everything that can be left out or replaced for a
comparison is a setting, so that each variant of the paper's Table III is this class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rankcast.allocation.base import AllocationProblem
from rankcast.errors import ConfigError
from rankcast.policy.actor_critic import ActorCritic
from rankcast.policy.blindfold import Blindfold, StateName
from rankcast.policy.coarse import (
    N_STATE_FEATURES,
    CoarseDescription,
    actor_features,
    state_features,
)
from rankcast.policy.denoisers import ResidualMlpDenoiser, UNetDenoiser
from rankcast.policy.fast_sampler import FastSampler
from rankcast.policy.ppo import PpoConfig
from rankcast.policy.rank_code import bin_width, decode
from rankcast.policy.sampler import ddim_sample, ddpm_sample, guided_predict
from rankcast.policy.schedule import DiffusionConfig, NoiseSchedule, check_choice
from rankcast.records import FloatArray, IntArray, Observation

Proposal = Literal["ppo", "none"]
Refinement = Literal["ddim", "ddpm", "none"]
DenoiserName = Literal["mlp", "unet"]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What the policy is made of.

    Attributes:
        proposal: `ppo`, or `none` to leave the coarse action out (DDIM alone).
        refinement: `ddim`, `ddpm`, or `none` to decode PPO's action directly (PPO alone).
        denoiser: `mlp` (residual) or `unet`.
        hidden: width d_latent of the residual MLP.
        blocks: residual blocks of the MLP.
        unet_depth: resolutions of the U-Net (Table II: 6).
        unet_kernel: kernel of the U-Net (Table II: 3).
        unet_channels: C_in of the U-Net.
        actor_hidden: d_MLP (Table II: 256).
        initial_log_std: log-spread of the coarse action at the start.
        depth_groups: groups of layers in the coarse description.
        blind: parts of the state that actor, critic and denoiser are not shown, for ablations.
        diffusion: schedule, prediction type, steps and guidance.
        ppo: PPO's settings.
    """

    proposal: Proposal = "ppo"
    refinement: Refinement = "ddim"
    denoiser: DenoiserName = "mlp"
    hidden: int = 128
    blocks: int = 2
    unet_depth: int = 6
    unet_kernel: int = 3
    unet_channels: int = 16
    actor_hidden: int = 256
    initial_log_std: float = -2.5
    depth_groups: int = 3
    blind: tuple[StateName, ...] = ()
    diffusion: DiffusionConfig = field(
        default_factory=lambda: DiffusionConfig(
            inference_steps=10, prediction="x0", batch_size=64, learning_rate=1e-3
        )
    )
    ppo: PpoConfig = field(default_factory=PpoConfig)

    def __post_init__(self) -> None:
        """Refuse unknown names and a policy without any part."""
        check_choice("proposal", self.proposal, get_args(Proposal))
        check_choice("refinement", self.refinement, get_args(Refinement))
        check_choice("denoiser", self.denoiser, get_args(DenoiserName))
        for part in self.blind:
            check_choice("part of the state", part, get_args(StateName))
        if self.proposal == "none" and self.refinement == "none":
            raise ConfigError("A policy needs a proposal, a refinement, or both.")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy decided for B states, and what training needs to know of it.

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

    As an `Allocator` it exploits: the mean coarse action, and the denoiser told not to explore.

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
        self.blindfold = Blindfold.for_problem(problem, c.blind)
        self.describe = CoarseDescription.of_layout(problem.layout, c.depth_groups)
        self.schedule = NoiseSchedule.named(c.diffusion.schedule, c.diffusion.training_steps)
        direct = c.refinement == "none"
        self.actor_critic = ActorCritic(
            N_STATE_FEATURES + n,
            n if direct else self.describe.size,
            torch.Generator().manual_seed(seed),
            c.actor_hidden,
            -0.5 if direct else c.initial_log_std,
        )
        self.denoiser = self._build_denoiser(seed)
        # What acts is a running mean of the trained weights: it does not follow every batch.
        self.acting_denoiser = self._build_denoiser(seed)
        self._fast: FastSampler | None = None

    def weights_changed(self) -> None:
        """Forget what was folded from the acting denoiser; call it after changing its weights."""
        self._fast = None

    @property
    def name(self) -> str:
        """A short name that says which parts are in use."""
        c = self.config
        if c.refinement == "none":
            return "ppo"
        parts = ([] if c.proposal == "none" else ["ppo"]) + [c.refinement]
        return "+".join(parts) + ("/unet" if c.denoiser == "unet" else "")

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
        seen = self.actor_input(observation)
        coarse = self.actor_critic.act(seen, generator if explore else None)
        if self.config.refinement == "none":
            code = coarse.action
        else:
            condition = self.condition(observation, coarse.action, explore=explore)
            code = self.refine(condition, generator)
        ranks = decode(code, self.problem.layout.r_max).numpy()
        feasible = self.problem.settle(ranks, observation, self._worth(code))
        return Decision(feasible, seen, coarse.action, coarse.log_prob, coarse.value)

    def _worth(self, code: Tensor) -> FloatArray:
        """Return (B, N, R) what a code says of each component, for cutting a plan that is late.

        A component is worth the less the higher it is above the code's own, unrounded rank. Gains
        are judged by the bit, so they are given in proportion to the bits.
        """
        layout = self.problem.layout
        rank = (code.double().numpy() + 1.0) / bin_width(layout.r_max) - 0.5
        above = np.arange(1, layout.r_max + 1) - rank[..., None]
        return np.exp(-above) * self.problem.link_costs.component_bits

    def allocate(self, observation: Observation, rng: np.random.Generator) -> IntArray:
        """Return (B, N) ranks; see `Allocator`."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.act(observation, generator, explore=False).ranks

    def actor_input(self, observation: Observation) -> Tensor:
        """Return the (B, 4 + N) input of actor and critic."""
        return _tensor(actor_features(self.blindfold(observation), self.problem))

    def actor_input_of(self, features: FloatArray, rng: np.random.Generator) -> Tensor:
        """Return the (B, 4 + N) input for states given by features (B, 4), random ranks in force.

        Unless only the increase of rank is paid for, the best plan does not depend on the ranks
        in force; random ones teach the actor so.
        """
        ranks = rng.uniform(-1.0, 1.0, (len(features), self.problem.layout.n_projections))
        if "ranks" in self.config.blind:
            ranks[:] = 2.0 * self.blindfold.rank / self.problem.layout.r_max - 1.0
        return _tensor(np.concatenate([features, ranks], axis=1))

    def condition(self, observation: Observation, coarse: Tensor, *, explore: bool) -> Tensor:
        """Return the denoiser's (B, 5 + K) condition: state, whether to explore, proposal."""
        seen = state_features(self.blindfold(observation), self.problem)
        return make_condition(seen, coarse, explore=explore)

    def refine(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Return the (B, N) code at the end of the reverse chain (Algorithm 1, lines 5–10)."""
        d, shape = self.config.diffusion, (len(condition), self.problem.layout.n_projections)
        x_T = torch.randn(shape, generator=generator)
        scale = 0.0 if self.config.proposal == "none" else d.guidance_scale
        network = self.acting_denoiser
        deterministic = self.config.refinement == "ddim" and d.eta == 0.0
        if deterministic and isinstance(network, ResidualMlpDenoiser):
            return self._fast_sampler(network, scale).sample(x_T, condition)
        predict = guided_predict(self.acting_denoiser, condition, scale)
        if self.config.refinement == "ddpm":
            return ddpm_sample(
                predict, x_T, self.schedule, generator=generator, steps=d.inference_steps,
                prediction=d.prediction, spacing=d.spacing,
            )  # fmt: skip
        return ddim_sample(
            predict, x_T, self.schedule, steps=d.inference_steps, prediction=d.prediction,
            eta=d.eta, spacing=d.spacing, generator=generator,
        )  # fmt: skip

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
        self.weights_changed()

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


def make_condition(
    features: FloatArray, coarse: Tensor, *, explore: bool | np.ndarray[Any, Any]
) -> Tensor:
    """Return (B, 5 + K): state features (B, 4), whether to explore, coarse description (B, K)."""
    flag = np.broadcast_to(np.asarray(explore, dtype=np.float64), (len(features),))
    return torch.cat([_tensor(features), _tensor(flag[:, None]), coarse], dim=1)


def _tensor(array: FloatArray) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)
