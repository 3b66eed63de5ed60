"""Train the policies of the study, and keep their weights beside it.

python -m studies.shared_band.train      # one core, minutes; writes airllm.pt
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from rankcast.band.airllm import AirLLMScheduler, BandPolicy, small_policy
from rankcast.band.bids import TunedIndex, look, serve
from rankcast.band.cell import Cell, DemandConfig, Demands, draw_demands
from rankcast.band.delivery import Delivery, Frame
from rankcast.config.policy import PolicyConfig
from rankcast.records import FloatArray
from rankcast.training.folder import load_state, save_state
from studies.shared_band.ladders import measured_ladders
from studies.shared_band.learning import BandTrainer, Episode, lesson, teach

WEIGHTS = Path(__file__).with_name("airllm.pt")
LESSON_SEED, EPISODE_SEEDS, SEED = 2100, (2101, 2102, 2103), 1
"""Draws to learn from; the seeds of the study are others, and so are those for tuning."""
N_DEVICES, N_CELLS = 10, 64
LEAST_HZ, MOST_HZ = 600.0, 4500.0
"""Bandwidth for each device, log-uniform over cells."""
GRADIENT_STEPS, ROUNDS = 2000, 45
BOTH, PPO, DDIM = "PPO + DDIM", "PPO", "DDIM"


def configs() -> dict[str, PolicyConfig]:
    """Return the policy and its ablations by name."""
    both = small_policy()
    return {
        BOTH: both,
        PPO: replace(both, refinement="none", initial_log_std=-1.2),
        DDIM: replace(both, proposal="none"),
    }


def fingerprint() -> str:
    """Return a name for the weights: rows of others do not count."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]


def policies() -> dict[str, BandPolicy]:
    """Return the trained policies.

    Raises:
        CheckpointError: no weights, or a file of another version.
    """
    state = load_state(WEIGHTS)
    found = {name: BandPolicy(config, SEED) for name, config in configs().items()}
    for name, policy in found.items():
        # PPO leaves the denoiser as it is, so DDIM alone has the same.
        policy.load_state_dict(state[BOTH if name == DDIM else name])
    return found


def repeated(demands: Demands, scales: Sequence[float]) -> Demands:
    """Return the C cells once for each scale of their bits, one set after another."""
    rows = {
        f.name: np.concatenate([getattr(demands, f.name)] * len(scales)) for f in fields(Demands)
    }
    scale = np.repeat(scales, len(demands.arrival))[:, None, None]
    return Demands(**rows | {"prefix_bits": rows["prefix_bits"] * scale})


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Serves equal parts of the cells of a batch by one policy each; the last part by the index."""

    policies: Sequence[BandPolicy]
    name: str = "side by side"

    @torch.no_grad()
    def shares(self, frame: Frame) -> FloatArray:
        """Return (C, D) shares; see `Scheduler`."""
        sight, n = look(frame), len(self.policies)
        features_of, active_of = np.split(sight.features, n + 1), np.split(frame.active, n + 1)
        corrections = [np.zeros(int(active_of[n].sum()))]
        for policy, features, active in reversed(
            list(zip(self.policies, features_of[:n], active_of[:n], strict=True))
        ):
            seen = torch.tensor(features[active], dtype=torch.float32)
            corrections.append(policy.correction(seen, policy.actor_critic.actor(seen)))
        return serve(frame, sight, np.concatenate(corrections[::-1]))


def delivered(cell: Cell, demands: Demands, rates_bps: FloatArray) -> dict[str, FloatArray]:
    """Return what each trained policy, and the index that they start from, deliver: (C,) each."""
    found = policies()
    names = [*(AirLLMScheduler(policy).name for policy in found.values()), TunedIndex().name]
    many = repeated(demands, [1.0] * len(names))
    rates_bps = np.concatenate([rates_bps] * len(names), axis=1)
    worth = Delivery(cell, many, rates_bps).run(SideBySide(tuple(found.values()))).sum(axis=1)
    return dict(zip(names, np.split(worth, len(names)), strict=True))


def episode(seed: int, n_cells: int = N_CELLS) -> Episode:
    """Return cells of many loads. Only bits over rate count, so bits are divided, not bands."""
    rng = np.random.default_rng(seed)
    cell, ladders = Cell(bandwidth_hz=N_DEVICES * LEAST_HZ), tuple(measured_ladders().values())
    demands = draw_demands(cell, ladders, DemandConfig(N_DEVICES), rng, n_cells)
    wider = (MOST_HZ / LEAST_HZ) ** rng.random(n_cells)
    scaled = replace(demands, prefix_bits=demands.prefix_bits / wider[:, None, None])
    return Episode.of(cell, scaled, cell.rates_of(demands.mean_snr_db, rng))


def taught() -> BandPolicy:
    """Return the policy with both, before PPO."""
    policy = BandPolicy(configs()[BOTH], SEED)
    lessons = lesson(episode(LESSON_SEED), np.random.default_rng(LESSON_SEED))
    teach(policy, lessons, GRADIENT_STEPS, SEED)
    return policy


def improved(policy: BandPolicy, after_round: Callable[[int, float], None]) -> BandPolicy:
    """Return the policy, changed by PPO; `after_round` is told its number and a cell's worth."""
    episodes, trainer = [episode(seed) for seed in EPISODE_SEEDS], BandTrainer(policy, SEED)
    for n in range(ROUNDS):
        after_round(n + 1, trainer.improve(episodes[n % len(episodes)]))
    return policy


def main() -> None:
    """Train and save."""

    def tell(n: int, worth: float) -> None:
        print(f"{n}/{ROUNDS}: worth {worth:.4f}", flush=True)

    trained = {
        BOTH: improved(taught(), tell),
        PPO: improved(BandPolicy(configs()[PPO], SEED), tell),
    }
    save_state(WEIGHTS, {name: policy.state_dict() for name, policy in trained.items()})
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size} bytes, {fingerprint()}")


if __name__ == "__main__":
    main()
