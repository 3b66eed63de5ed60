"""Eight settings of PPO and eight of AirLLM, with two seeds that nothing else uses.

The calibrated runs under them are those of other seeds: rankings, not rewards, carry over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankcast.experiment.policies import CALIBRATION, episodes_of, policy_job, run_policy_job
from rankcast.experiment.readouts import reward
from rankcast.experiment.spec import Experiment, Job, Presentation, Result, Scale, Table
from rankcast.experiment.tuning import GRID, SEEDS

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


EXPERIMENT = Experiment(
    name="tuning",
    title="Tuning PPO and AirLLM alike",
    question="Which of eight settings each is best?",
    source="baseline",
    jobs=jobs,
    run=run_policy_job,
    present=present,
    needs=(CALIBRATION,),
)
