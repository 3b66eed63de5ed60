"""Measure what each part of the state buys: the policy is trained and deployed without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from studies.harness.spec import Claim, Job, Presentation, Result, Row, RunContext, Table
from studies.report.statistics import paired_t, t_interval
from studies.shared.policies import CALIBRATION, calibrated_row, calibrated_world, run_policy_job
from studies.shared.rewards import Comparison, Rows, in_pairs
from studies.shared.sweeps import Sweep, Variant
from studies.surrogate.world import best_known

PARTS = {
    "snr": "the SNR",
    "bandwidth": "the bandwidth",
    "entropy": "the lexical entropy",
    "oov": "the OOV rate",
    "ranks": "the active ranks",
}
FULL, NOTHING = "everything shown", "nothing shown"
LATE = ", late plans pay"  # the paper's rule, under which no plan is corrected by the true link
LAST = 50  # episodes whose observed reward is compared


def variant(label: str, key: str, *hidden: str, enforce: bool = True) -> Variant:
    """Return the policy that is not shown some parts of the state.

    Its lessons are of links that were met, since a policy that cannot distinguish them would
    otherwise prepare for links that never come.
    """
    settings = {
        "policy": {"blind": list(hidden)},
        "training": {"teacher": {"wide_links": 0.0}},
        "world": {"bandwidth_octaves": 1.5} | ({} if enforce else {"deadline": "penalise"}),
    }
    return Variant(label, key, settings)


def paying(label: str, key: str, *hidden: str) -> Variant:
    """Return the same where a late plan is not cut to fit but pays."""
    return variant(label + LATE, f"{key}-pays", *hidden, enforce=False)


def without(words: str) -> str:
    """Return the label of a variant."""
    return f"without {words}"


SWEEP = Sweep(
    name="state_ablation",
    title="Parts of the state",
    question="How much reward does each part of the state buy?",
    source="ours",
    variants=(
        variant(FULL, "full"),
        *(variant(without(words), f"no-{part}", part) for part, words in PARTS.items()),
        variant(NOTHING, "nothing", *PARTS),
        paying(FULL, "full"),
        paying(without(PARTS["snr"]), "no-snr", "snr"),
        paying(without(PARTS["bandwidth"]), "no-bandwidth", "bandwidth"),
        paying(NOTHING, "nothing", *PARTS),
    ),
    comparisons=(
        *(
            Comparison(f"Being shown {words} raises the final reward.", FULL, without(words))
            for words in PARTS.values()
        ),
        Comparison("Being shown the state at all raises the final reward.", FULL, NOTHING),
        *(
            Comparison(
                f"Being shown {what} raises the final reward where late plans pay.",
                FULL + LATE,
                label + LATE,
                "Calibrated learner, final reward; nothing is cut to fit the link.",
            )
            for what, label in (
                ("the SNR", without(PARTS["snr"])),
                ("the bandwidth", without(PARTS["bandwidth"])),
                ("the state at all", NOTHING),
            )
        ),
    ),
    seeds=(0, 1, 2),
    live=False,
    note="A hidden part is replaced by a constant in training and in use; the deadline is always "
    "shown. Each SNR is judged at three bandwidths, 1.5 octaves apart. SNR and bandwidth act only "
    "through the rate that they make together. The deadline is enforced on the true link: a plan "
    "that is too large is cut to fit, whatever the policy saw, so a policy without the link loses "
    "thrift, not arrival. Where late plans pay instead "
    "(as in the paper's reward) no plan is corrected by what the policy did not see; regrets and "
    "rewards of the two rules are not comparable. The active ranks cannot "
    "matter beyond learning, since each step pays for its whole plan. Text: the calibrated learner "
    "has two strata by lexical entropy, so its reward does depend on it (and on the OOV rate only "
    "as far as that distinguishes the strata). But the teacher's utility knows no strata, only PPO "
    "could adapt to them, and the final reward is a mean over the strata for plans that were made "
    "for one batch: here text can harm or distract, not help. The table of observed rewards counts "
    "each text as itself.",
)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train a variant; beside the full-sighted one, solve for what knowing the text is worth."""
    values = dict(run_policy_job(job, context))
    if job.settings["variant"] == "full":
        row = calibrated_row(context.inputs[CALIBRATION], job.settings["calibration"], job.seed)
        values["text_worth"] = text_worth(row, job.seed, job.settings["world"])
    return values


def text_worth(row: Row, seed: int, settings: Mapping[str, Any]) -> float:
    """Return the reward that the best known plans per stratum earn over those for all texts."""
    from studies.surrogate.calibration import Calibration  # noqa: PLC0415

    calibration = Calibration.from_plain(row.values["calibration"])
    world, rng = calibrated_world(row, seed, settings), np.random.default_rng(seed)
    problem, link, groups = world.problem, world.link, calibration.groups
    plans = [
        best_known(problem, u.loss, u.amplitude * u.gains, link, rng)
        for u in (group.utility for group in groups)
    ]
    plans.append(best_known(problem, calibration.loss, calibration.gains, link, rng))
    worth = 0.0
    for group in groups:
        objectives = [problem.objective(group.utility.loss(ranks), ranks, link) for ranks in plans]
        worth += group.share * float((objectives[-1] - np.min(objectives, axis=0)).mean())
    return worth


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Add observed rewards, and what knowing the text is worth, to the sweep."""
    shown, rows = SWEEP.present(result, inputs), SWEEP.rows(result, inputs)
    full = rows.get(FULL, ())
    if not full:
        return shown
    by_run = {row.values["calibrated_run"]: row for row in full}
    worth = t_interval([row.values["text_worth"] for row in by_run.values()])
    claim = Claim(
        "A solver that knows the utility of each stratum of texts earns more than one that knows "
        "their mean.",
        "",
        f"{worth.value:+.4f}",
        worth.interval,
        "measured",
        tuple(row.job.seed for row in by_run.values()),
        "The most that lexical entropy and OOV rate could buy here; interval over calibrated runs.",
    )
    tables = (*shown.tables, observed_table(rows))
    return replace(shown, claims=(*shown.claims, claim), tables=tables)


def observed_table(rows: Rows) -> Table:
    """Return the rewards observed at the end of training, less those of the full-sighted."""
    lines = []
    for label, own in rows.items():
        full = FULL + LATE if label.endswith(LATE) else FULL
        both = in_pairs(own, rows.get(full, ()))
        if label == full or not both:
            continue
        less = paired_t([observed(row) for row, _ in both], [observed(row) for _, row in both])
        lines.append((label, f"{less:+.4f}", str(len(both))))
    return Table(
        "Reward observed while learning",
        ("setting", f"last {LAST} episodes, less {FULL} under the same rule", "seeds"),
        tuple(lines),
        "While exploring; links, texts and noise are the same for every setting of a seed. Each "
        "text counts with its own stratum's loss.",
    )


def observed(row: Row) -> float:
    """Return the mean reward observed in the last episodes."""
    return float(np.mean(row.values["rewards"][-LAST:]))


STUDY = replace(SWEEP.study(), run=run, present=present)
