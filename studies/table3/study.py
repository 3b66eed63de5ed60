"""Table III: the parts of AirLLM, and AdaLoRA trained to all that arrives in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    Row,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import t_interval, verdict
from studies.shared.judging import Answers, direct_answers, live_answers, percent, points_claim
from studies.shared.policies import (
    CALIBRATION,
    EPISODES,
    JUDGED_DB,
    episodes_of,
    judged_links,
    policy_job,
    run_policy_job,
    seeds_of,
)
from studies.shared.rewards import in_pairs, paired, plan_bits, regret, reward
from studies.shared.tasks import BITS_PER_PARAM

AIRLLM = "PPO + DDIM, MLP"
VARIANTS = {
    AIRLLM: {},
    "PPO": {"policy": {"refinement": "none"}},
    "DDIM": {"policy": {"proposal": "none"}},
    "PPO + DDPM": {"policy": {"refinement": "ddpm"}},
    "PPO + DDIM, U-Net": {"policy": {"denoiser": "unet", "unet_depth": 3}},
    "Eq. 19 literal (reward-weighted)": {
        "policy": {"initial_log_std": -0.5},
        "training": {"reward_term": "reward-weighted"},
    },
    "Eq. 19 differentiated (guided)": {"training": {"guided_every": 10}},
}
KEYS = {
    AIRLLM: "airllm", "PPO": "ppo", "DDIM": "ddim", "PPO + DDPM": "ppo-ddpm",
    "PPO + DDIM, U-Net": "unet", "Eq. 19 literal (reward-weighted)": "reward-weighted",
    "Eq. 19 differentiated (guided)": "guided",
}  # fmt: skip
PAPER = {
    "PPO": 94.50,
    "DDIM": 94.72,
    "PPO + DDPM": 95.41,
    AIRLLM: 95.53,
    "PPO + DDIM, U-Net": 95.30,
}
ADALORA = 95.18


def jobs(scale: Scale) -> Sequence[Job]:
    """Return every variant with every seed; AirLLM itself first."""
    return [
        policy_job(
            KEYS[label],
            seed,
            episodes=episodes_of(scale, 1000 if label == "PPO" else EPISODES),
            judge_db=judged_links(scale, seed) if label in PAPER else (),
            **settings,
        )
        for label, settings in VARIANTS.items()
        for seed in seeds_of(scale)
    ]


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare the variants on the calibrated learner and on the real model."""
    rows = {label: result.select(variant=KEYS[label]) for label in VARIANTS}
    rows = {label: own for label, own in rows.items() if own}
    live = {label: live_answers(own, JUDGED_DB) for label, own in rows.items()}
    at_budget = inputs["adalora"].select(snr_db=JUDGED_DB)
    claims = _accuracy_claims(live, direct_answers(at_budget)) + _reward_claims(rows)
    return Presentation(tuple(claims), (_table(rows, live, at_budget),))


def _table(
    rows: Mapping[str, Sequence[Row]], live: Mapping[str, Answers | None], adalora: Sequence[Row]
) -> Table:
    lines = [
        (
            label,
            f"{PAPER[label]:.2f} %" if label in PAPER else "–",
            percent(None if (answers := live[label]) is None else answers.accuracy),
            f"{plan_bits(own, JUDGED_DB).mean() / 1e6:.2f}",
            f"{t_interval([reward(row) for row in own]):.4f}",
            f"{t_interval([regret(row) for row in own]):.3f}",
            f"{len(own)}, real model {0 if answers is None else len(answers.seeds)}",
        )
        for label, own in rows.items()
    ]
    answers = direct_answers(adalora)
    if answers is not None:
        sent = sum(row.values["sent_params"] for row in adalora) / len(adalora)
        lines.append(
            ("AdaLoRA", f"{ADALORA:.2f} %", percent(answers.accuracy),
             f"{sent * BITS_PER_PARAM / 1e6:.2f}", "–", "–", str(len(answers.seeds)))
        )  # fmt: skip
    return Table(
        "Variants of the policy",
        ("method", "paper: accuracy", f"accuracy at {JUDGED_DB:g} dB, real model",
         f"sent at {JUDGED_DB:g} dB [Mbit]", "final reward, calibrated learner",
         "regret (0: exact solver, 1: best uniform rank)", "seeds"),
        tuple(lines),
        "Paper: OPT-1.3B. Ours: MiniLM, 3 calibrated runs, which seeds 3 and 4 use again; 95 % "
        "intervals, over seeds for reward and regret, over seeds and texts for accuracy.",
    )  # fmt: skip


def _accuracy_claims(live: Mapping[str, Answers | None], adalora: Answers | None) -> list[Claim]:
    """Return AirLLM against each other column of the paper's table, on the real model."""
    ours = live.get(AIRLLM)
    if ours is None:
        return []
    others = [(label, live.get(label), PAPER[label]) for label in PAPER if label != AIRLLM]
    claims = []
    for label, theirs, paper in [*others, ("AdaLoRA", adalora, ADALORA)]:
        if theirs is None or not ours.shared(theirs):
            continue
        difference, claimed = ours.minus(theirs), PAPER[AIRLLM] - paper
        claims.append(
            points_claim(
                f"AirLLM (PPO + DDIM, MLP) is more accurate than {label}.",
                difference,
                verdict(difference, claimed / 100),
                ours.shared(theirs),
                f"Real model, plans for {JUDGED_DB:g} dB"
                + (", AdaLoRA trained to all that arrives in time." if label == "AdaLoRA" else ".")
                + " The bits sent differ, see the table.",
                paper=f"{claimed:+.2f} points",
            )
        )
    return claims


def _reward_claims(rows: Mapping[str, Sequence[Row]]) -> list[Claim]:
    """Return AirLLM's reward against every variant's, on the calibrated learner."""
    ours, claims = rows.get(AIRLLM, ()), []
    for label, theirs in rows.items():
        both = in_pairs(ours, theirs)
        if label == AIRLLM or not both:
            continue
        difference = paired(ours, theirs)
        claimed = label in PAPER
        claims.append(
            Claim(
                f"AirLLM's final reward is higher than that of {label}.",
                "higher (Fig. 3, no number)" if claimed else "",
                f"{difference.value:+.4f}",
                difference.interval,
                verdict(difference) if claimed else "measured",
                tuple(row.job.seed for row, _ in both),
                f"Calibrated learner, {_episodes(ours)} episodes against {_episodes(theirs)}; the "
                "exact solver's reward is higher than that of the best uniform rank by "
                f"{ours[0].values['best_uniform'] - ours[0].values['oracle']:.4f}.",
            )
        )
    return claims


def _episodes(rows: Sequence[Row]) -> int:
    return rows[0].job.settings["episodes"]


STUDY = Study(
    name="table3",
    title="Parts of the policy",
    question="Which parts of AirLLM are needed, and is it more accurate than AdaLoRA?",
    source="Table III",
    jobs=jobs,
    run=run_policy_job,
    present=present,
    needs=(CALIBRATION,),
    also_shows=("adalora",),
)
