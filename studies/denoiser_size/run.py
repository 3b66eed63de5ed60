"""Does a small, short, unguided denoiser earn what the straightforward one earns?

    python -m studies.denoiser_size.run

Each network is taught on plans solved from the same belief (Thompson sampling for 300
episodes of the synthetic MDP), for the same number of updates; so what differs is the network and
its chain alone. Writes result.json and the table in README.md.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import t as student

from rankcast.allocation.baselines import BeliefAllocator
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.config.policy import DiffusionConfig, PolicyConfig, TrainingConfig
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.provenance import describe_device, package_versions
from studies.surrogate.world import World, synthetic_world

HERE = Path(__file__).parent
EPISODES, UPDATES, LESSONS, SEEDS = 300, 4000, 40, 5


@dataclass(frozen=True, slots=True)
class Setting:
    """One denoiser with its chain."""

    name: str
    hidden: int
    steps: int
    guidance_scale: float


SETTINGS = (
    Setting("straightforward", 512, 50, 2.0),
    Setting("guidance folded in", 512, 50, 1.0),
    Setting("fewer steps", 512, 10, 1.0),
    Setting("default: smaller too", 128, 10, 1.0),
    Setting("fewest steps", 128, 5, 1.0),
    Setting("two steps", 128, 2, 1.0),
)


def learn_belief(world: World, seed: int) -> BayesianUtility:
    """Return a belief after 300 episodes of Thompson sampling."""
    rng = np.random.default_rng(seed)
    utility = BayesianUtility(world.problem.layout, TrainingConfig().utility)
    explorer = BeliefAllocator(world.problem, utility, 1.2)
    for episode in range(EPISODES):
        world.env.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            observation = world.env.observe()
            ranks = explorer.allocate(observation, rng)
            outcome = world.env.step(ranks)
            utility.update(ranks, outcome.task_loss, observation.text)
            done = outcome.done
    return utility


def policy_of(world: World, setting: Setting, seed: int) -> AirLLM:
    """Return an untaught policy."""
    diffusion = DiffusionConfig(
        inference_steps=setting.steps,
        guidance_scale=setting.guidance_scale,
        prediction="x0",
        batch_size=64,
        learning_rate=1e-3,
    )
    return AirLLM(world.problem, PolicyConfig(hidden=setting.hidden, diffusion=diffusion), seed)


def teach(world: World, belief: BayesianUtility, policy: AirLLM, seed: int) -> dict[str, Any]:
    """Teach the policy plans from the belief; return its weights."""
    training = TrainingConfig(gradient_steps=0, warm_up_steps=0)
    trainer = AirLLMTrainer(world.env, policy, training, seed)
    trainer.utility.load_state_dict(belief.state_dict())
    trainer.teacher.remember(world.observe(1))
    for _ in range(LESSONS):
        lesson = trainer.teacher.lesson(trainer.rng)
        trainer.denoiser.learn(lesson, UPDATES // LESSONS, trainer.episode)
    return policy.state_dict()


def run_seed(seed: int) -> list[dict[str, Any]]:
    """Return one row for each setting."""
    torch.set_num_threads(1)
    world = synthetic_world(seed)
    belief = learn_belief(world, seed)
    observation = world.observe()
    link = observation.link
    rows: list[dict[str, Any]] = []
    weights: dict[int, dict[str, Any]] = {}
    for setting in SETTINGS:
        policy = policy_of(world, setting, seed)
        if setting.hidden not in weights:  # steps and guidance belong to sampling alone
            weights[setting.hidden] = teach(world, belief, policy, seed)
        policy.load_state_dict(weights[setting.hidden])
        ranks = policy.allocate(observation, np.random.default_rng(seed))
        rows.append(asdict(setting) | {"seed": seed, "regret": world.regret(ranks, link)})
    solver = BeliefAllocator(world.problem, belief).allocate(observation, np.random.default_rng(0))
    rows.append({"name": "exact solver", "seed": seed, "regret": world.regret(solver, link)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table: regret, and the difference to the straightforward denoiser."""
    regret = {(row["name"], row["seed"]): row["regret"] for row in rows}
    lines = [
        "| denoiser | hidden | steps | w | regret | minus straightforward |",
        "|---|---|---|---|---|---|",
    ]
    quantile = student.ppf(0.975, SEEDS - 1) / np.sqrt(SEEDS)
    for name in [*(setting.name for setting in SETTINGS), "exact solver"]:
        own = np.array([regret[name, seed] for seed in range(SEEDS)])
        base = np.array([regret["straightforward", seed] for seed in range(SEEDS)])
        row = next(r for r in rows if r["name"] == name)
        sizes = " | ".join(str(row.get(k, "–")) for k in ("hidden", "steps", "guidance_scale"))
        difference = own - base
        lines.append(
            f"| {name} | {sizes} | {own.mean():.3f} ± {quantile * own.std(ddof=1):.3f} | "
            f"{difference.mean():+.3f} ± {quantile * difference.std(ddof=1):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all seeds, write the result and the table."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = [row for seed_rows in pool.map(run_seed, range(SEEDS)) for row in seed_rows]
    result = {
        "command": "python -m studies.denoiser_size.run",
        "versions": package_versions(),
        "device": f"{describe_device('cpu')}, one thread a run",
        "episodes": EPISODES,
        "updates": UPDATES,
        "rows": rows,
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    readme = HERE / "README.md"
    head, rest = readme.read_text("utf-8").split("<!-- table -->")
    tail = rest.split("<!-- /table -->")[1]
    readme.write_text(f"{head}<!-- table -->\n\n{table(rows)}\n\n<!-- /table -->{tail}")
    print(table(rows))


if __name__ == "__main__":
    main()
