"""How close does each policy come to the optimum, and how soon? On the synthetic MDP.

    python experiments/synthetic_mdp/run.py [--quick] [--workers 2]

Rows already in rows/ are kept, so an interrupted run continues. Then `render.py` draws and prints.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from rankcast.allocation.base import AllocationProblem
from rankcast.allocation.baselines import BeliefAllocator
from rankcast.allocation.solve import waterfill
from rankcast.allocation.utility import BayesianUtility
from rankcast.env import EnvConfig, RankAllocationVectorEnv
from rankcast.finetune.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.fading import IidSnr
from rankcast.link.payload import LinkCostModel
from rankcast.policy.airllm import AirLLM, PolicyConfig
from rankcast.policy.ppo import PpoConfig
from rankcast.policy.training import AirLLMTrainer, TrainingConfig
from rankcast.records import FloatArray, IntArray, LinkState, Observation, TextStats

HERE = Path(__file__).parent
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
REPEATS = 40  # plans sampled for each SNR at each evaluation
EVALUATE_EVERY = 25
TEACHER_WIDTH = 1.2

AIRLLM = PolicyConfig()
PPO_FASTER = PpoConfig(learning_rate=1e-3, epochs=10)
POLICIES: dict[str, tuple[PolicyConfig, TrainingConfig]] = {
    "airllm": (AIRLLM, TrainingConfig()),
    "ddim": (replace(AIRLLM, proposal="none"), TrainingConfig()),
    "airllm-no-imitation": (AIRLLM, TrainingConfig(teacher_weight=0.0)),
    "reward-weighted": (
        replace(AIRLLM, initial_log_std=-0.5),
        TrainingConfig(reward_term="reward-weighted"),
    ),
    "ppo": (replace(AIRLLM, refinement="none"), TrainingConfig()),
    "ppo-faster": (replace(AIRLLM, refinement="none", ppo=PPO_FASTER), TrainingConfig()),
}
VARIANTS = (*POLICIES, "teacher", "random")


@dataclass(frozen=True)
class World:
    """One draw of the synthetic MDP with its reference points (noise-free objectives)."""

    problem: AllocationProblem
    env: RankAllocationVectorEnv
    utility: SyntheticUtility
    oracle: float
    uniform: float
    uniform_per_snr: float

    def objective(self, ranks: IntArray, link: LinkState) -> FloatArray:
        """Return (B,) U + λη."""
        return self.problem.objective(self.utility.loss(ranks), ranks, link)

    def regret(self, ranks: IntArray, link: LinkState) -> float:
        """Return (policy - oracle) / (best uniform rank - oracle) of mean objectives."""
        mean = float(self.objective(ranks, link).mean())
        return (mean - self.oracle) / (self.uniform - self.oracle)


def make_world(seed: int, interaction_share: float) -> World:
    """Draw a utility; scale the band so that full rank costs η = 1 at 5 dB."""
    layout = transformer_layout()
    costs = LinkCostModel.for_layout(layout, Awgn())
    full_bits = costs.bits_per_rank().sum() * layout.r_max
    bandwidth_hz = full_bits / float(Awgn().spectral_efficiency(np.array([5.0]))[0])
    problem = AllocationProblem(layout, costs, link_weight=0.1, deadline="penalise")
    utility = SyntheticUtility.draw(np.random.default_rng(seed), layout, interaction_share)
    learner = SyntheticLearner(layout, utility, seed=seed)
    env = RankAllocationVectorEnv(learner, IidSnr(SNRS_DB), costs, EnvConfig(bandwidth_hz))
    link = five_links(bandwidth_hz)
    uniform = np.array(
        [
            problem.objective(utility.loss(np.full((5, 36), rank)), np.full((5, 36), rank), link)
            for rank in range(layout.r_max + 1)
        ]
    )
    world = World(
        problem, env, utility, 0.0, float(uniform.mean(axis=1).min()), uniform.min(axis=0).mean()
    )
    best = best_known(world, link, np.random.default_rng(seed))
    return replace(world, oracle=float(world.objective(best, link).mean()))


def five_links(bandwidth_hz: float, repeats: int = 1) -> LinkState:
    """Return the five SNRs, repeated."""
    return LinkState(np.tile(SNRS_DB, repeats), np.array(bandwidth_hz), np.array(1.0))


def best_known(world: World, link: LinkState, rng: np.random.Generator) -> IntArray:
    """Return the optimum: exact if additive, else the best of 10 coordinate descents."""
    best = waterfill(world.utility.gains, world.problem, link)
    if world.utility.interactions is None:
        return best
    starts = [best, *(rng.integers(0, 9, best.shape) for _ in range(9))]
    found = [descend(world, start, link) for start in starts]
    scores = np.array([world.objective(ranks, link) for ranks in found])
    return np.array([found[i][k] for k, i in enumerate(scores.argmin(axis=0))])


def descend(world: World, ranks: IntArray, link: LinkState) -> IntArray:
    """Change one rank at a time while that lowers the objective."""
    ranks = ranks.copy()
    while True:
        before = world.objective(ranks, link).mean()
        for m in range(ranks.shape[1]):
            choices = np.repeat(ranks[None], 9, axis=0)
            choices[:, :, m] = np.arange(9)[:, None]
            scores = np.array([world.objective(choice, link) for choice in choices])
            ranks[:, m] = scores.argmin(axis=0)
        if world.objective(ranks, link).mean() >= before - 1e-12:
            return ranks


def observe(link: LinkState, n_projections: int) -> Observation:
    """Return states with the text statistics of the synthetic learner."""
    size = link.size
    text = TextStats(np.full(size, 2.5), np.full(size, 0.1))
    return Observation(link, text, np.zeros((size, n_projections), dtype=np.int64))


def run_policy(variant: str, world: World, seed: int, episodes: int) -> list[dict[str, float]]:
    """Train a policy; return its curve."""
    config, training = POLICIES[variant]
    policy = AirLLM(world.problem, config, seed)
    trainer = AirLLMTrainer(world.env, policy, training, seed)
    link = five_links(world.env.config.bandwidth_hz, REPEATS)
    observation = observe(link, 36)
    curve = []
    for episode in range(1, episodes + 1):
        trainer.run_episode()
        if episode % EVALUATE_EVERY == 0:
            generator = torch.Generator().manual_seed(episode)
            acted = policy.act(observation, generator, explore=True).ranks
            deployed = policy.allocate(observation, np.random.default_rng(episode))
            belief = BeliefAllocator(world.problem, trainer.utility)
            solved = belief.allocate(observation, np.random.default_rng(0))
            curve.append(
                {
                    "episode": episode,
                    "deployed": world.regret(deployed, link),
                    "exploring": world.regret(acted, link),
                    "solver_on_its_belief": world.regret(solved, link),
                }
            )
    return curve


def run_teacher(world: World, seed: int, episodes: int) -> list[dict[str, float]]:
    """Thompson sampling with the exact solver, no networks."""
    rng = np.random.default_rng(seed)
    utility = BayesianUtility(world.problem.layout, TrainingConfig().utility)
    explorer = BeliefAllocator(world.problem, utility, TEACHER_WIDTH)
    greedy = BeliefAllocator(world.problem, utility)
    link = five_links(world.env.config.bandwidth_hz, REPEATS)
    curve = []
    for episode in range(1, episodes + 1):
        world.env.reset(seed=seed if episode == 1 else None)
        done = False
        while not done:
            observation = world.env.observe()
            ranks = explorer.allocate(observation, rng)
            _, _, _, truncated, info = world.env.step(ranks)
            utility.update(ranks, info["task_loss"], observation.text)
            done = bool(truncated.any())
        if episode % EVALUATE_EVERY == 0:
            observation = observe(link, 36)
            curve.append(
                {
                    "episode": episode,
                    "deployed": world.regret(greedy.allocate(observation, rng), link),
                    "exploring": world.regret(explorer.allocate(observation, rng), link),
                }
            )
    return curve


def run_random(world: World, seed: int, episodes: int) -> list[dict[str, float]]:
    """Random ranks never learn; one long evaluation stands for all."""
    link = five_links(world.env.config.bandwidth_hz, 400)
    ranks = np.random.default_rng(seed).integers(0, 9, (link.size, 36))
    regret = world.regret(ranks, link)
    steps = range(EVALUATE_EVERY, episodes + 1, EVALUATE_EVERY)
    return [{"episode": e, "deployed": regret, "exploring": regret} for e in steps]


def run_one(variant: str, interaction_share: float, seed: int, episodes: int) -> dict[str, Any]:
    """Run one variant on one draw of the MDP."""
    torch.set_num_threads(1)
    started = time.process_time()
    world = make_world(seed, interaction_share)
    special = {"teacher": run_teacher, "random": run_random}
    curve = (
        special[variant](world, seed, episodes)
        if variant in special
        else run_policy(variant, world, seed, episodes)
    )
    return {
        "variant": variant,
        "interaction_share": interaction_share,
        "seed": seed,
        "episodes": episodes,
        "oracle": world.oracle,
        "best_uniform": world.uniform,
        "best_uniform_per_snr": float(world.uniform_per_snr),
        "cpu_s": time.process_time() - started,
        "curve": curve,
    }


def jobs(quick: bool) -> list[tuple[str, float, int, int]]:
    """Return what to run, the most important first."""
    if quick:
        return [(variant, 0.0, 0, 50) for variant in ("airllm", "teacher", "random")]
    first = ("random", "teacher", "airllm", "ddim", "ppo", "ppo-faster")
    coupled = ("random", "teacher", "airllm", "ddim")
    plan = [(v, 0.0, seed, 1000) for v in first for seed in range(5)]
    plan += [(v, 0.2, seed, 300) for v in coupled for seed in range(5)]
    plan += [("reward-weighted", 0.0, seed, 300) for seed in range(5)]
    plan += [("airllm-no-imitation", 0.0, seed, 300) for seed in range(5)]
    return plan


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, 50 episodes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="comma-separated variants")
    args = parser.parse_args()
    folder = HERE / ("rows-quick" if args.quick else "rows")
    folder.mkdir(exist_ok=True)
    wanted = set(filter(None, args.only.split(",")))
    missing = []
    for job in jobs(args.quick):
        variant, share, seed, episodes = job
        path = folder / f"{variant}-{share:g}-{seed}-{episodes}.json"
        if not path.exists() and (not wanted or variant in wanted):
            missing.append((path, job))
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_one, *job): path for path, job in missing}
        for done, future in enumerate(as_completed(running), start=1):
            path, row = running[future], future.result()
            partial = path.with_suffix(".tmp")
            partial.write_text(json.dumps(row) + "\n")
            partial.rename(path)
            last = row["curve"][-1]
            print(f"{done}/{len(missing)} {path.stem}: {last['deployed']:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
