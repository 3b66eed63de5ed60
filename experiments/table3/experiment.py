"""Table III: the parts of AirLLM, and AdaLoRA at the same number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankcast.experiment.policies import (
    CALIBRATION,
    EPISODES,
    episodes_of,
    policy_job,
    run_policy_job,
    seeds_of,
)
from rankcast.experiment.readouts import (
    Answers,
    direct_answers,
    live_answers,
    paired,
    percent,
    regret,
    reward,
    verdict,
)
from rankcast.experiment.spec import (
    Claim,
    Experiment,
    Job,
    Presentation,
    Result,
    Scale,
    Table,
)
from rankcast.statistics import t_interval

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
JUDGED_DB = 5.0
LIVE_SEEDS = 3


def jobs(scale: Scale) -> Sequence[Job]:
    """Return every variant with every seed; AirLLM itself first."""
    return [
        policy_job(
            KEYS[label],
            seed,
            episodes=episodes_of(scale, 1000 if label == "PPO" else EPISODES),
            judge_db=(JUDGED_DB,)
            if label in PAPER and seed < LIVE_SEEDS and scale == "default"
            else (),
            **settings,
        )
        for label, settings in VARIANTS.items()
        for seed in seeds_of(scale)
    ]


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare the variants on the calibrated learner and on the real model."""
    rows = {label: result.select(variant=KEYS[label]) for label in VARIANTS}
    rows = {label: found for label, found in rows.items() if found}
    live = {label: live_answers(found, JUDGED_DB) for label, found in rows.items()}
    adalora = direct_answers(inputs["adalora"].select(snr_db=JUDGED_DB))
    lines = [
        (
            label,
            f"{PAPER[label]:.2f} %" if label in PAPER else "–",
            percent(None if live[label] is None else live[label].accuracy),
            f"{t_interval([reward(row) for row in found]):.4f}",
            f"{t_interval([regret(row) for row in found]):.3f}",
            str(len(found)),
        )
        for label, found in rows.items()
    ]
    lines.append(
        ("AdaLoRA", f"{ADALORA:.2f} %", percent(adalora and adalora.accuracy), "–", "–",
         "–" if adalora is None else str(len(adalora.seeds)))
    )  # fmt: skip
    table = Table(
        "Variants of the policy",
        ("method", "paper: accuracy", f"accuracy at {JUDGED_DB:g} dB, real model",
         "final reward, calibrated learner", "regret (0: exact solver, 1: best uniform rank)",
         "seeds"),
        tuple(lines),
        "Paper: OPT-1.3B. Ours: MiniLM, 3 calibrated runs; 95 % intervals, over seeds for reward "
        "and regret, over seeds and texts for accuracy.",
    )  # fmt: skip
    claims = _accuracy_claims(live, adalora) + _reward_claims(rows)
    return Presentation(tuple(claims), (table,))


def _accuracy_claims(live: Mapping[str, Answers | None], adalora: Answers | None) -> list[Claim]:
    """Return AirLLM against each other column of the paper's table, on the real model."""
    ours = live.get(AIRLLM)
    if ours is None:
        return []
    others = [(label, live.get(label), PAPER[label]) for label in PAPER if label != AIRLLM]
    found = []
    for label, theirs, paper in [*others, ("AdaLoRA", adalora, ADALORA)]:
        if theirs is None:
            continue
        difference, claimed = ours.minus(theirs), PAPER[AIRLLM] - paper
        low_high = difference.scaled(100).interval
        found.append(
            Claim(
                f"AirLLM (PPO + DDIM, MLP) is more accurate than {label}.",
                f"{claimed:+.2f} points",
                f"{100 * difference.value:+.2f} points",
                low_high,
                verdict(difference, claimed / 100),
                tuple(seed for seed in ours.seeds if seed in theirs.seeds),
                f"Real model, plans for {JUDGED_DB:g} dB"
                + (", AdaLoRA trained to all that arrives in time." if label == "AdaLoRA" else "."),
            )
        )
    return found


def _reward_claims(rows: Mapping[str, Sequence]) -> list[Claim]:
    """Return AirLLM's reward against every variant's, on the calibrated learner."""
    ours, found = rows.get(AIRLLM, ()), []
    for label, theirs in rows.items():
        if label == AIRLLM or not ours:
            continue
        difference = paired(ours, theirs)
        claimed = label in PAPER
        found.append(
            Claim(
                f"AirLLM's final reward is higher than that of {label}.",
                "higher (Fig. 3, no number)" if claimed else "",
                f"{difference.value:+.4f}",
                difference.interval,
                verdict(difference, float("inf")) if claimed else "measured",
                tuple(row.job.seed for row in theirs),
                "Calibrated learner; the reward of the exact solver differs from that of the best "
                f"uniform rank by {ours[0].values['best_uniform'] - ours[0].values['oracle']:.4f}.",
            )
        )
    return found


EXPERIMENT = Experiment(
    name="table3",
    title="Parts of the policy",
    question="Which parts of AirLLM are needed, and is it more accurate than AdaLoRA?",
    source="Table III",
    jobs=jobs,
    run=run_policy_job,
    present=present,
    needs=(CALIBRATION, "adalora"),
)
