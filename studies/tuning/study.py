"""Eight settings of PPO and eight of AirLLM, with two seeds that nothing else uses.

The calibrated runs under them are those of other seeds: rankings, not rewards, carry over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from studies.harness.spec import Job, Presentation, Result, Scale, Study, Table
from studies.shared.policies import CALIBRATION, episodes_of, policy_job, run_policy_job
from studies.shared.rewards import reward

SEEDS = (100, 101)
PPO_EPISODES, AIRLLM_EPISODES = 1000, 60


def ppo(learning_rate: float, epochs: int, n_envs: int) -> dict[str, Any]:
    """Return one setting of PPO alone."""
    return {
        "policy": {
            "refinement": "none",
            "ppo": {"learning_rate": learning_rate, "epochs": epochs},
        },
        "n_envs": n_envs,
        "episodes": PPO_EPISODES,
    }


def airllm(gradient_steps: int, explore_width: float, guidance_scale: float) -> dict[str, Any]:
    """Return one setting of AirLLM."""
    return {
        "policy": {"diffusion": {"guidance_scale": guidance_scale}},
        "training": {
            "gradient_steps": gradient_steps,
            "teacher": {"explore_width": explore_width},
        },
        "episodes": AIRLLM_EPISODES,
    }


GRID: Mapping[str, Mapping[str, Any]] = {
    **{
        f"ppo-lr{lr:g}-epochs{epochs}-envs{n}": ppo(lr, epochs, n)
        for lr, epochs, n in (
            (1e-4, 4, 1), (1e-3, 4, 1), (3e-4, 10, 1), (1e-3, 10, 1),
            (1e-3, 4, 8), (3e-3, 4, 8), (1e-3, 10, 8), (3e-3, 10, 8),
        )
    },
    **{
        f"airllm-steps{steps}-width{width:g}-guidance{scale:g}": airllm(steps, width, scale)
        for steps in (20, 40)
        for width in (0.8, 1.2)
        for scale in (1.0, 2.0)
    },
}  # fmt: skip


def best(result: Result, method: str) -> Mapping[str, Any]:
    """Return the setting of `ppo` or `airllm` with the highest mean final reward."""
    scores = {
        name: np.mean([reward(row) for row in result.select(variant=name)])
        for name in GRID
        if name.startswith(method) and result.select(variant=name)
    }
    return GRID[max(scores, key=lambda name: scores[name])]


QUICK = ("ppo-lr0.001-epochs4-envs8", "airllm-steps40-width1.2-guidance1")


def jobs(scale: Scale) -> Sequence[Job]:
    """Return every setting with every tuning seed."""
    return [
        policy_job(name, seed, **{**settings, "episodes": episodes_of(scale, settings["episodes"])})
        for name, settings in GRID.items()
        for seed in (SEEDS[:1] if scale == "quick" else SEEDS)
        if scale != "quick" or name in QUICK
    ]


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show the final reward of every setting."""
    del inputs
    lines = tuple(
        (name, f"{np.mean([reward(row) for row in rows]):.4f}", str(settings["episodes"]),
         str(len(rows)))
        for name, settings in GRID.items()
        if (rows := result.select(variant=name))
    )  # fmt: skip
    columns = ("setting", "final reward", "episodes", "seeds")
    return Presentation((), (Table("Settings tried", columns, lines),))


STUDY = Study(
    name="tuning",
    title="Tuning PPO and AirLLM alike",
    question="Which of eight settings each is best?",
    source="baseline",
    jobs=jobs,
    run=run_policy_job,
    present=present,
    needs=(CALIBRATION,),
)
