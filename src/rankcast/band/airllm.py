"""AirLLM for a cell: every device runs the same policy for itself, and the cell serves their bids.

PPO proposes and DDIM refines, as for one link (`rankcast.policy.airllm`). A device sees itself, the
load of its cell and the price of airtime, and nothing of the other devices. Its bid starts from a
tuned index (`rankcast.band.bids`); the policy corrects it. What can be learned that the Lagrangian
does not know are the statistics of who will come and of the fading to come.

- *What PPO proposes*: how much airtime is worth to the device on the whole, over the price that it
  will have until the deadline.
- *What DDIM makes of it*: how near to the price the device is now. It learned that from the duals
  of the program that knows the future (`rankcast.band.clairvoyant.shadow_prices`).

Without DDIM the proposal is the correction itself.

Differs from the paper: a chain begins at zero, the mean of its noise, so that a frame has one
answer.

Shapes: `C` cells, `D` devices of a cell, `F` features, `B` devices that are active.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankcast.band.bids import SIGHT, look, serve
from rankcast.band.delivery import Frame
from rankcast.config.policy import DiffusionConfig, PolicyConfig, PpoConfig
from rankcast.policy.ddim import NoiseSchedule
from rankcast.policy.denoisers import ResidualMlpDenoiser
from rankcast.policy.fast_ddim import FastSampler
from rankcast.policy.ppo import ActorCritic
from rankcast.records import FloatArray

REACH = 6.0
"""Decades from the highest correction of DDIM, 0, to the lowest."""
_SMALLEST, _MOST = 1e-3, 4.0


def small_policy() -> PolicyConfig:
    """Return the sizes and settings with which one core learns a policy in minutes."""
    return PolicyConfig(
        hidden=64,
        actor_hidden=64,
        initial_log_std=-2.2,
        diffusion=DiffusionConfig(
            inference_steps=4, prediction="x0", condition_dropout=0.2, batch_size=512,
            learning_rate=2e-3,
        ),
        ppo=PpoConfig(
            discount=0.99,
            decay=0.9, learning_rate=2e-3, minibatch=4096, epochs=4, target_kl=0.2,
        ),
    )  # fmt: skip


class BandPolicy:
    """The networks that all devices share.

    Args:
        config: of what the policy is made, as for one link.
        seed: of the initial weights.
    """

    def __init__(self, config: PolicyConfig | None = None, seed: int = 0) -> None:
        self.config = c = config or small_policy()
        self.actor_critic = ActorCritic(
            len(SIGHT), 1, torch.Generator().manual_seed(seed), c.actor_hidden, c.initial_log_std
        )
        self.schedule = NoiseSchedule.named(c.diffusion.schedule, c.diffusion.training_steps)
        with torch.random.fork_rng(devices=[]):  # layers initialise from the global generator
            torch.manual_seed(seed)
            self.denoiser = ResidualMlpDenoiser(
                1, len(SIGHT) + 1, c.hidden, c.blocks, time_dim=16, n_visible=len(SIGHT)
            )
        self._chain: FastSampler | None = None

    @property
    def refines(self) -> bool:
        """Whether DDIM refines what PPO proposes."""
        return self.config.refinement != "none"

    def correction(self, seen: Tensor, proposal: Tensor) -> FloatArray:
        """Return the (B,) corrections of bids [decades] for seen (B, F) and proposal (B, 1)."""
        if not self.refines or not len(seen):
            return proposal[:, 0].double().numpy()
        if self._chain is None:
            d = self.config.diffusion
            scale = 0.0 if self.config.proposal == "none" else d.guidance_scale
            self._chain = FastSampler.from_denoiser(
                self.denoiser, self.schedule, d.inference_steps, scale, d.prediction,
                spacing=d.spacing,
            )  # fmt: skip
        code = self._chain.sample(torch.zeros(len(seen), 1), torch.cat([seen, proposal], dim=1))
        return 0.5 * REACH * (code[:, 0].double().numpy() - 1.0)

    def denoiser_changed(self) -> None:
        """Forget the folded chain; call it after the denoiser was trained."""
        self._chain = None

    def state_dict(self) -> dict[str, Any]:
        """Return all weights."""
        own = {"actor_critic": self.actor_critic.state_dict()}
        return own | ({"denoiser": self.denoiser.state_dict()} if self.refines else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load all weights."""
        self.actor_critic.load_state_dict(state["actor_critic"])
        if self.refines:
            self.denoiser.load_state_dict(state["denoiser"])
        self.denoiser_changed()


class AirLLMScheduler:
    """Serves the highest bids of a trained policy, by its mean proposals; see `Scheduler`.

    Args:
        policy: trained; it must not change while this is used.
    """

    def __init__(self, policy: BandPolicy) -> None:
        self.policy = policy
        c = policy.config
        parts = [
            name
            for name, is_in in (("PPO", c.proposal != "none"), ("DDIM", policy.refines))
            if is_in
        ]
        self.name = f"AirLLM ({' + '.join(parts)})"

    @torch.no_grad()
    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        sight, active = look(frame), frame.active
        seen = torch.tensor(sight.features[active], dtype=torch.float32)
        return serve(
            frame, sight, self.policy.correction(seen, self.policy.actor_critic.actor(seen))
        )
