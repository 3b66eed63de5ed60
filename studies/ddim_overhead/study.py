"""Time refinement by DDIM, and show what it buys; rewards are those of Table III."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import t_interval
from studies.shared.policies import (
    CALIBRATION,
    WORLD,
    calibrated_row,
    calibrated_world,
    seeds_of,
)
from studies.shared.rewards import in_pairs, paired, reward

METHODS: Mapping[str, Mapping[str, Any]] = {
    "PPO alone": {"refinement": "none"},
    "DDIM alone, 10 steps": {"proposal": "none"},
    "PPO + DDIM, 10 steps": {},
    "PPO + DDIM, 50 steps": {"diffusion": {"inference_steps": 50}},
    "PPO + DDPM, 10 steps": {"refinement": "ddpm"},
}
TRAINED = {
    "PPO alone": "ppo",
    "DDIM alone, 10 steps": "ddim",
    "PPO + DDIM, 10 steps": "airllm",
    "PPO + DDPM, 10 steps": "ppo-ddpm",
}
SEEDS = (0, 1, 2, 3, 4)
ROUNDS, CALLS = 30, 20


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one timing of every method for each seed."""
    rounds = 3 if scale == "quick" else ROUNDS
    return [Job(f"timing-{seed}", seed, {"rounds": rounds}) for seed in seeds_of(scale, SEEDS)]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Time one decision of each method, the methods in turn; weights do not matter for time."""
    import torch  # noqa: PLC0415

    from rankcast.config.plain import from_plain  # noqa: PLC0415
    from rankcast.config.policy import PolicyConfig  # noqa: PLC0415
    from rankcast.policy.airllm import AirLLM  # noqa: PLC0415

    torch.set_num_threads(1)
    row = calibrated_row(context.inputs[CALIBRATION], "sst2", job.seed)
    world = calibrated_world(row, job.seed, WORLD)
    observation = world.observe(1)
    policies = {
        name: AirLLM(world.problem, from_plain(PolicyConfig, settings), job.seed)
        for name, settings in METHODS.items()
    }
    rng = np.random.default_rng(job.seed)
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(job.settings["rounds"]):
        for name, policy in policies.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                policy.allocate(observation, rng)
            times[name].append((time.perf_counter() - started) / CALLS / observation.link.size)
    return {"seconds": {name: statistics.median(values) for name, values in times.items()}}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show time for a decision beside what was earned with it."""
    if not result.rows:
        return Presentation()
    micros = {name: [1e6 * row.values["seconds"][name] for row in result.rows] for name in METHODS}
    rows = {name: inputs["table3"].select(variant=key) for name, key in TRAINED.items()}
    rows = {name: own for name, own in rows.items() if own}
    base = "PPO alone"
    lines = tuple(
        (
            name,
            f"{t_interval(micros[name]):.0f}",
            f"{np.mean(micros[name]) / np.mean(micros[base]):.1f} ×",
            f"{t_interval([reward(r) for r in rows[name]]):.4f}" if name in rows else "–",
        )
        for name in METHODS
    )
    columns = ("method", "time for a decision [µs]", "relative to PPO alone", "final reward")
    table = Table(
        "Time and reward",
        columns,
        lines,
        "Batches of five links, one core of a shared machine, median of 30 rounds in turn, 95 % "
        "intervals over seeds; the rewards are Table III's.",
    )
    return Presentation(tuple(_claims(micros, rows, result.seeds)), (table,))


def _claims(
    micros: Mapping[str, Sequence[float]], rows: Mapping[str, Any], seeds: tuple[int, ...]
) -> list[Claim]:
    """Return what five times the steps cost, and what refinement buys."""
    many, few = micros["PPO + DDIM, 50 steps"], micros["PPO + DDIM, 10 steps"]
    ratio = t_interval([a / b for a, b in zip(many, few, strict=True)])
    claims = [
        Claim(
            "50 inference steps take longer than 10.",
            "latency grows by 40 % beyond 50 steps",
            f"{ratio.value:.2f} × the time of 10 steps",
            ratio.interval,
            "measured",
            seeds,
            "Folded sampler; a whole decision with features, PPO, decoding and deadline.",
        )
    ]
    ours = rows.get("PPO + DDIM, 10 steps", ())
    for name in ("PPO alone", "DDIM alone, 10 steps", "PPO + DDPM, 10 steps"):
        both = in_pairs(ours, rows.get(name, ()))
        if both:
            difference = paired(ours, rows[name])
            claims.append(
                Claim(
                    f"What PPO + DDIM earns beyond {name}.",
                    "",
                    f"{difference.value:+.4f} reward",
                    difference.interval,
                    "measured",
                    tuple(row.job.seed for row, _ in both),
                    "Calibrated learner, {} episodes against {}.".format(
                        *(row.job.settings["episodes"] for row in both[0])
                    ),
                )
            )
    return claims


STUDY = Study(
    name="ddim_overhead",
    title="Cost and worth of refinement",
    question="What does refinement by DDIM cost in time, and what does it buy?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs=(CALIBRATION,),
    also_shows=("table3",),
)
