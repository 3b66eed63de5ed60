"""Train the policy that all devices share: centralised, on episodes whose future is known.

Devices are coupled by airtime alone. So each is its own learner if it pays for the airtime that it
takes: its reward is the worth that it gains minus the price of the slot. Prices are those of
foresight on training episodes. Where a slot is full, prices only move reward between devices, so
the sum over devices stays the aim. When the policy acts it knows no such price.

The denoiser is taught before: a lesson is what a device saw, and how near to the price it was.

Shapes: `C` cells, `D` devices of a cell, `T` slots, `B` = C·D devices, `M` samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankcast.band.airllm import BandPolicy
from rankcast.band.bids import look, serve
from rankcast.band.cell import Cell, Demands
from rankcast.band.clairvoyant import shadow_prices
from rankcast.band.delivery import Delivery, worth_of
from rankcast.policy.diffusion_loss import denoising_loss
from rankcast.policy.ppo import CoarseAction, RolloutBatch, gae, ppo_update
from rankcast.records import FloatArray

_DECADES = 2.0  # how far below the price counts: the codes -1 to 1 of the denoiser
_UNIT = 10.0  # of rewards, so that returns are near 1


@dataclass(frozen=True, eq=False)
class Episode:
    """C cells of which everything is known.

    Attributes:
        cell: the band.
        demands: of the devices.
        rates_bps: (T, C, D) of every slot [bit/s].
        price: (T, C) of a whole slot, by foresight from the start.
    """

    cell: Cell
    demands: Demands
    rates_bps: FloatArray
    price: FloatArray

    @classmethod
    def of(cls, cell: Cell, demands: Demands, rates_bps: FloatArray) -> Episode:
        """Return the episode with its prices.

        Raises:
            ConfigError: SciPy is not installed.
        """
        frame = Delivery(cell, demands, rates_bps).frame()
        return cls(cell, demands, rates_bps, shadow_prices(frame, rates_bps).slot)

    def begin(self) -> Delivery:
        """Return the episode at its first slot."""
        return Delivery(self.cell, self.demands, self.rates_bps)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What devices saw, and what foresight said of them.

    Attributes:
        seen: (M, F).
        coarse: (M, 1) what airtime is worth to the device, at its mean rate, over the mean price
            until its deadline: decades + 1.
        code: (M, 1) what this slot is worth to it over its price: decades + 1, from -1 to 1.
    """

    seen: Tensor
    coarse: Tensor
    code: Tensor


def lesson(
    episode: Episode, rng: np.random.Generator, *, solve_every: int = 30, spread: float = 0.5
) -> Lesson:
    """Return a lesson, from states near those that the tuned index leads to.

    Args:
        episode: to serve.
        rng: source of the noise of bids, which lasts some slots.
        solve_every: slots after which the program is solved anew, for what is then missing.
        spread: standard deviation of the noise [decades].
    """
    delivery, rows, noise = episode.begin(), [], np.zeros(episode.demands.shape)
    foresight, price_sum = None, np.zeros((1, len(noise)))
    for t in range(episode.cell.n_slots):
        frame = delivery.frame()
        if foresight is None or t % solve_every == 0:
            foresight = shadow_prices(frame, episode.rates_bps[t:])
            price_sum = np.cumsum(np.pad(foresight.slot, ((1, 0), (0, 0))), axis=0)
        at, sight = t % solve_every, look(frame)
        bid, price = foresight.bid[at], foresight.slot[at][:, None]
        last = np.minimum(at + frame.slots_left, len(price_sum) - 1)
        until = price_sum[last, np.arange(len(noise))[:, None]]
        mean_price = (until - price_sum[at][:, None]) / np.maximum(frame.slots_left, 1)
        mean_bid = foresight.bit * frame.rate_quantiles_bps.mean(axis=-1) * frame.slot_s
        known = frame.active & (price > 0)
        rows.append(
            (
                sight.features[known],
                _decades(mean_bid, mean_price)[known, None] + 1.0,
                _decades(bid, price)[known, None] + 1.0,
            )
        )
        noise = 0.9 * noise + (1.0 - 0.9**2) ** 0.5 * spread * rng.standard_normal(noise.shape)
        delivery.step(serve(frame, sight, noise[frame.active]))
    seen, coarse, code = (np.concatenate(x) for x in zip(*rows, strict=True))
    return Lesson(_float(seen), _float(coarse), _float(code.clip(-1.0, 1.0)))


def teach(policy: BandPolicy, lesson: Lesson, gradient_steps: int, seed: int) -> float:
    """Teach the denoiser a lesson, and the actor what to propose; return the last mean error."""
    d, generator = policy.config.diffusion, torch.Generator().manual_seed(seed)
    actor = policy.actor_critic.actor
    networks = [*policy.denoiser.parameters(), *actor.parameters()]
    optimizer = torch.optim.Adam(networks, lr=d.learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, gradient_steps)
    condition, losses = torch.cat([lesson.seen, lesson.coarse], dim=1), []
    for _ in range(gradient_steps):
        index = torch.randint(len(condition), (d.batch_size,), generator=generator)
        denoising = denoising_loss(
            policy.denoiser, policy.schedule, lesson.code[index], condition[index],
            generator=generator, prediction=d.prediction, condition_dropout=d.condition_dropout,
        )  # fmt: skip
        shown = (actor(lesson.seen[index]) - lesson.coarse[index]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        (denoising + shown).backward()
        optimizer.step()
        falling.step()
        losses.append(float(denoising.detach()))
    policy.denoiser_changed()
    return float(np.mean(losses[-100:]))


class BandTrainer:
    """Improves the proposals by PPO, one episode at a time; DDIM, if it is in, is in the loop.

    Args:
        policy: changed in place.
        seed: of exploration and of the order of samples.
    """

    def __init__(self, policy: BandPolicy, seed: int = 0) -> None:
        self.policy, self.generator = policy, torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(
            policy.actor_critic.parameters(), lr=policy.config.ppo.learning_rate
        )

    def improve(self, episode: Episode) -> float:
        """Act for one episode and learn from it; return the (mean) worth delivered by a cell."""
        delivery, rows = episode.begin(), []
        for t in range(episode.cell.n_slots):
            frame = delivery.frame()
            sight, active = look(frame), frame.active
            seen = _float(sight.features[active])
            with torch.no_grad():
                proposal = self.policy.actor_critic.act(seen, self.generator)
            shares = serve(frame, sight, self.policy.correction(seen, proposal.action))
            outcome = delivery.step(shares)
            reward = _UNIT * (outcome.gain - episode.price[t][:, None] * shares)
            rows.append((seen, proposal, torch.tensor(active.ravel()), _float(reward.ravel())))
        ppo_update(
            self.policy.actor_critic, self.optimizer, self._batch(rows), self.policy.config.ppo,
            self.generator,
        )  # fmt: skip
        return float(worth_of(delivery.demands, delivery.received_bits).sum(axis=1).mean())

    def _batch(self, rows: list[tuple[Tensor, CoarseAction, Tensor, Tensor]]) -> RolloutBatch:
        """Return the steps of devices while they were active, with their advantages."""
        seen, proposals, active, rewards = zip(*rows, strict=True)
        there = torch.stack(active)
        values = torch.zeros(there.shape)
        values[there] = torch.cat([p.value for p in proposals])
        later = torch.cat([there[1:], torch.zeros_like(there[:1])])
        after = torch.cat([values[1:], torch.zeros_like(values[:1])])
        estimates = gae(
            torch.stack(rewards), values, after, ~later, torch.zeros_like(later),
            discount=self.policy.config.ppo.discount, decay=self.policy.config.ppo.decay,
        )  # fmt: skip
        return RolloutBatch(
            torch.cat(seen),
            torch.cat([p.action for p in proposals]),
            torch.cat([p.log_prob for p in proposals]),
            estimates.advantages[there],
            estimates.returns[there],
        )


def _decades(x: FloatArray, of: FloatArray) -> FloatArray:
    """Return log10(x / of), within two decades below and one above."""
    ratio = np.maximum(x, 1e-30) / np.maximum(of, 1e-30)
    return np.log10(ratio).clip(-_DECADES, 1.0)


def _float(array: FloatArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)
