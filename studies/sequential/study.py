"""Where the future matters: does the policy wait for better links, and what does that buy?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rankcast.allocation.problem import Allocator
from rankcast.allocation.waterfilling import PriceFactor
from rankcast.config.policy import TrainingConfig
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.records import FloatArray, LinkState
from studies.harness.spec import (
    Claim,
    Job,
    LineChart,
    Presentation,
    Result,
    RunContext,
    Scale,
    Series,
    Study,
    Table,
)
from studies.report.statistics import Estimate, t_interval
from studies.sequential.stopping import IncrementalAllocator, SnrTrace
from studies.sequential.world import DeliveryConfig, DeliveryWorld
from studies.shared.rewards import series_over_seeds

STEPS = 60  # of a delivery that is judged
DEVICES, HORIZON = 8, 15  # of a training episode
POLICY_ACTS = TrainingConfig(teacher_share=0.0)  # while it learns, as in the paper
REFIT_EVERY = 10
EVALUATE_EVERY = 25
LABELS = {
    "clairvoyant": "clairvoyant bound",
    "stopping": "optimal stopping, gains and process known",
    "airllm": "AirLLM, both learned",
    "airllm-belief": "optimal stopping on what AirLLM has learned",
    "future-belief": "no waiting, on what AirLLM has learned",
    "future": "no waiting: gains known, all steps to come counted",
    "myopic": "myopic solver: gains known, one step counted",
    "airllm-one-step": "AirLLM taught one step's worth",
}
COUPLINGS = {False: "no limit per step", True: "each step has to arrive in time"}


def jobs(scale: Scale) -> Sequence[Job]:
    """Return every policy on every draw, uncoupled and coupled."""
    quick = scale == "quick"
    policies = ("clairvoyant", "myopic", "airllm", "future", "stopping", "airllm-one-step")
    return [
        _job(policy, coupled, seed, *((10, 8) if quick else (200, 50)))
        for policy in (policies[:-1] if quick else policies)
        for seed in ((0,) if quick else range(5))
        for coupled in COUPLINGS
    ]


def _job(policy: str, coupled: bool, seed: int, episodes: int, deliveries: int) -> Job:
    settings = {"policy": policy, "coupled": coupled, "deliveries": deliveries}
    if policy.startswith("airllm"):
        settings["episodes"] = episodes
    return Job(f"{policy}-{'coupled' if coupled else 'free'}-{seed}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Judge one policy, after training it where it learns; every policy meets the same SNRs."""
    del context
    torch.set_num_threads(1)
    policy = job.settings["policy"]
    world = DeliveryWorld.draw(job.seed, DeliveryConfig(coupled=job.settings["coupled"]))
    paths = world.paths(np.random.default_rng([job.seed, 1]), job.settings["deliveries"], STEPS)
    if policy == "clairvoyant":
        return {"values": world.clairvoyant(paths).tolist()}
    if policy.startswith("airllm"):
        looks_ahead = policy == "airllm"
        return _learn(world, paths, job.settings["episodes"], job.seed, looks_ahead=looks_ahead)
    gains, lasting = world.utility.gains, 1.0 / (1.0 - world.problem.discount)
    rule = world.rule()
    allocators: dict[str, Allocator] = {
        "myopic": IncrementalAllocator(world.problem, gains),
        "future": IncrementalAllocator(world.problem, gains, _constant(1.0 / lasting)),
        "stopping": IncrementalAllocator(world.problem, gains, rule.price_factor),
    }
    values = _judge(world, allocators[policy], paths)
    if policy == "stopping":
        values["snr_db"] = rule.snr_db.tolist()
        values["factor"] = (rule.threshold / rule.cost).tolist()
    return values


class FittedPrice:
    """The price to wait for, as far as the SNRs met so far tell.

    Until the first fit all steps to come count, and none is waited for.

    Args:
        world: whose rule is fitted.
        trace: the SNRs that are met.
    """

    def __init__(self, world: DeliveryWorld, trace: SnrTrace) -> None:
        self._world, self._trace = world, trace
        self._price = _constant(1.0 - world.problem.discount)

    def __call__(self, link: LinkState) -> FloatArray:
        """Return (B,) factors on λ·η; see `PriceFactor`."""
        return self._price(link)

    def refit(self) -> None:
        """Fit the rule to the SNRs met so far."""
        self._price = self._world.rule(self._trace.fit()).price_factor


def _constant(factor: float) -> PriceFactor:
    return lambda link: np.full(link.size, factor)


def _judge(world: DeliveryWorld, allocator: Allocator, paths: FloatArray) -> dict[str, Any]:
    delivered = world.deliver(allocator, paths, np.random.default_rng(0))
    return {"values": delivered.values.tolist(), "mean_rank": delivered.mean_rank.tolist()}


def _learn(
    world: DeliveryWorld, paths: FloatArray, episodes: int, seed: int, *, looks_ahead: bool
) -> dict[str, Any]:
    """Train AirLLM; what it waits for is fitted to the SNRs that it has met."""
    env, trace = world.environment(DEVICES, HORIZON, seed)
    policy = AirLLM(world.problem, seed=seed)
    price = FittedPrice(world, trace) if looks_ahead else None
    trainer = AirLLMTrainer(env, policy, POLICY_ACTS, seed, price)
    curve = []
    for episode in range(1, episodes + 1):
        trainer.run_episode()
        if price is not None and episode % REFIT_EVERY == 0:
            price.refit()
        if episode % EVALUATE_EVERY == 0:
            value = world.deliver(policy, paths, np.random.default_rng(episode)).values.mean()
            curve.append({"episode": episode, "value": float(value)})
    fitted, lasting = trace.fit(), 1.0 / (1.0 - world.problem.discount)
    rule = world.rule(fitted)
    believed = IncrementalAllocator(world.problem, trainer.utility, rule.price_factor)
    rushed = IncrementalAllocator(world.problem, trainer.utility, _constant(1.0 / lasting))
    return {
        **_judge(world, policy, paths),
        "curve": curve,
        "fitted": [fitted.mean_db, fitted.std_db, fitted.correlation],
        "airllm-belief": _judge(world, believed, paths)["values"],
        "future-belief": _judge(world, rushed, paths)["values"],
    }


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return the share of the gap that each policy closes, and how."""
    del inputs
    claims = [claim for coupled in COUPLINGS for claim in _claims(result, coupled)]
    tables = [_table(result, coupled) for coupled in COUPLINGS]
    charts = [_threshold_chart(result)]
    for coupled in COUPLINGS:
        charts += [_rank_chart(result, coupled), _curve_chart(result, coupled)]
    return Presentation(
        tuple(claims),
        tuple(table for table in tables if table.rows),
        tuple(chart for chart in charts if chart.series),
    )


def _values(result: Result, policy: str, coupled: bool) -> dict[int, float]:
    """Return the mean J of each seed."""
    source, key = policy, "values"
    if policy.endswith("-belief"):
        source, key = "airllm", policy
    rows = result.select(policy=source, coupled=coupled)
    return {row.job.seed: float(np.mean(row.values[key])) for row in rows}


def _closed(result: Result, policy: str, coupled: bool) -> dict[int, float]:
    """Return the share of the gap between the myopic solver and the bound, by seed."""
    ours, low, high = (_values(result, p, coupled) for p in (policy, "myopic", "clairvoyant"))
    common = [seed for seed in ours if seed in low and seed in high]
    return {seed: (ours[seed] - low[seed]) / (high[seed] - low[seed]) for seed in common}


def _claims(result: Result, coupled: bool) -> list[Claim]:
    """Return the lines of the scoreboard for one coupling."""
    where, claims = COUPLINGS[coupled], []
    for policy in ("airllm", "airllm-one-step", "stopping"):
        shares = _closed(result, policy, coupled)
        if shares:
            estimate = t_interval(list(shares.values())).scaled(100.0)
            claim = f"{LABELS[policy]}: gap from myopic solver to clairvoyant bound closed; {where}"
            claims.append(_claim(claim, estimate, ".1f", " %", shares))
    for other in ("myopic", "future", "future-belief", "airllm-belief", "stopping"):
        ours, theirs = (_values(result, p, coupled) for p in ("airllm", other))
        differences = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
        if differences:
            estimate = t_interval(list(differences.values()))
            claim = f"AirLLM minus {LABELS[other]}, discounted reward J; {where}"
            claims.append(_claim(claim, estimate, "+.3f", "", differences))
    return claims


def _claim(
    claim: str, estimate: Estimate, spec: str, unit: str, seeds: Mapping[int, float]
) -> Claim:
    value = f"{estimate.value:{spec}}{unit}"
    note = "t interval over draws of the utility; all policies meet the same SNRs"
    return Claim(claim, "", value, estimate.interval, "measured", tuple(sorted(seeds)), note)


def _table(result: Result, coupled: bool) -> Table:
    """Return J and the share of the gap of every policy."""
    rows = []
    for policy, label in LABELS.items():
        values, shares = _values(result, policy, coupled), _closed(result, policy, coupled)
        if values:
            closed = f"{t_interval(list(shares.values())).scaled(100.0):.1f}" if shares else "–"
            value = f"{t_interval(list(values.values())):.3f}"
            rows.append((label, value, closed, str(len(values))))
    return Table(
        f"Deliveries, {COUPLINGS[coupled]}",
        ("policy", "J", "gap closed [%]", "seeds"),
        tuple(rows),
        "J is the discounted reward of a delivery, noise-free. Gap: from the myopic solver to the "
        "clairvoyant bound. Mean ± half-width of the 95 % t interval over seeds.",
    )


def _threshold_chart(result: Result) -> LineChart:
    """Return θ(s) as a share of the one-step price."""
    rows = result.select(policy="stopping", coupled=False)[:1]
    discount = DeliveryConfig().discount
    series = [
        Series(label, row.values["snr_db"], values)
        for row in rows
        for label, values in (
            ("myopic solver", [1.0] * len(row.values["snr_db"])),
            ("optimal stopping", row.values["factor"]),
            ("no waiting", [1.0 - discount] * len(row.values["snr_db"])),
        )
    ]
    return LineChart(
        "When to send", "SNR [dB]", "gain per step asked for, as a share of λη", tuple(series),
        note="Optimal stopping asks for as little as the solver that never waits where the link is "
        "good, and for nearly ten times as much in a deep fade.",
    )  # fmt: skip


def _rank_chart(result: Result, coupled: bool) -> LineChart:
    """Return the mean rank received against time."""
    series = []
    for policy in ("myopic", "future", "stopping", "airllm"):
        rows = result.select(policy=policy, coupled=coupled)
        if rows:
            ranks = np.array([row.values["mean_rank"] for row in rows])
            series.append(series_over_seeds(LABELS[policy], range(ranks.shape[1]), ranks))
    return LineChart(
        f"Rank received, {COUPLINGS[coupled]}", "step", "mean rank", tuple(series),
        note="Mean and 95 % t interval over seeds.",
    )  # fmt: skip


def _curve_chart(result: Result, coupled: bool) -> LineChart:
    """Return the share of the gap closed against training episodes."""
    low, high = (_values(result, p, coupled) for p in ("myopic", "clairvoyant"))
    series = []
    for policy in ("airllm", "airllm-one-step"):
        rows = [
            row
            for row in result.select(policy=policy, coupled=coupled)
            if row.job.seed in low and row.job.seed in high and row.values["curve"]
        ]
        if rows:
            curves = np.array([[point["value"] for point in r.values["curve"]] for r in rows])
            floor = np.array([[low[r.job.seed]] for r in rows])
            ceiling = np.array([[high[r.job.seed]] for r in rows])
            episodes = [point["episode"] for point in rows[0].values["curve"]]
            closed = 100.0 * (curves - floor) / (ceiling - floor)
            series.append(series_over_seeds(LABELS[policy], episodes, closed))
    return LineChart(
        f"Gap closed while learning, {COUPLINGS[coupled]}", "episode", "gap closed [%]",
        tuple(series), note="Mean and 95 % t interval over seeds.",
    )  # fmt: skip


STUDY = Study(
    name="sequential",
    title="Where the future matters",
    question=(
        "With a wandering SNR and only the increase of rank paid for, how much of what foresight "
        "is worth does the policy win, with and without a limit on each step?"
    ),
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
