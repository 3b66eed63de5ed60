"""Present `rate_accuracy`: accuracy against bits, and AirLLM beside AdaLoRA at every link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from studies.harness.spec import Claim, LineChart, Presentation, Result, Row, Table
from studies.report.statistics import auc_interval, verdict, verdict_not_worse
from studies.shared.judging import (
    Answers,
    accuracy_series,
    direct_answers,
    live_answers,
    percent,
    points_claim,
)
from studies.shared.rewards import plan_bits
from studies.shared.tasks import BITS_PER_PARAM, FULL_RANK_AT_DB, SNRS_DB

LABELS = {
    "airllm": "AirLLM, λ = 0.1",
    "airllm-0": "AirLLM, λ = 0: fills the deadline",
    "adalora": "AdaLoRA, one training a link",
    "uniform": "uniform, filling the deadline",
    "knapsack": "knapsack on the learned utility, λ = 0.1",
    "waterfill": "water-filling on the learned utility, λ = 0.1",
    "svd": "SVD truncation",
    "svd-activations": "SVD truncation, activation-weighted",
    "eva": "EVA ranks",
    "sensitivity": "gradient sensitivity",
    "random": "random",
}
MARGIN = 0.01
"""A point of accuracy: what `not worse` may cost at most."""
NOT_WORSE = f"Not worse: the interval excludes {MARGIN:.0%} less and does not lie below 0."
CLAIMED = 0.0036
"""By how much the paper's AirLLM is more accurate, at least (Fig. 4)."""
MORE_BITS = 0.02
"""Within this share two payloads count as equal."""

FEW_DB = (-5.0, 5.0)
"""The links on which every allocator was judged [dB]."""
AREA_DB = 5.0
"""Areas end at the budget of this link [dB], up to which every allocator was judged."""

Point = tuple[float, Answers]  # bits, answers
Points = Mapping[str, Mapping[float, Point]]


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return the comparison with AdaLoRA, the table and the curve."""
    points = points_of(result, inputs["adalora"])
    if not points:
        return Presentation()
    claims = (*against_adalora(points), *fewer_parameters(points), *_against_others(points))
    tables = (_table(points), _areas(points))
    return Presentation(claims, tables, (_chart(points),), *_answer(points))


def points_of(result: Result, adalora: Result) -> Points:
    """Return bits and answers of each allocator at each link."""
    points: dict[str, dict[float, Point]] = {}
    for name in LABELS:
        rows = result.select(allocator=name)
        for snr_db in SNRS_DB:
            at = _adalora_point(adalora.select(snr_db=snr_db)) if name == "adalora" else None
            answers = live_answers(rows, snr_db) if rows else None
            if answers is not None:
                at = (float(plan_bits(rows, snr_db).mean()), answers)
            if at is not None:
                points.setdefault(name, {})[snr_db] = at
    return points


def _adalora_point(rows: Sequence[Row]) -> Point | None:
    answers = direct_answers(rows)
    if answers is None:
        return None
    params = np.mean([row.values["sent_params"] for row in rows])
    return float(params) * BITS_PER_PARAM, answers


def against_adalora(points: Points, *, better: bool = False) -> list[Claim]:
    """Return AirLLM beside AdaLoRA at each link: whether not worse, or better as the paper says."""
    return against(points, "airllm-0", "AirLLM (λ = 0)", better=better)


def against(points: Points, name: str, label: str, *, better: bool = False) -> list[Claim]:
    """Return some plans beside AdaLoRA's at each link; see `against_adalora`."""
    claims = []
    for snr_db, (bits, theirs) in points.get("adalora", {}).items():
        used, ours = points.get(name, {}).get(snr_db, (0.0, None))
        if ours is None or not ours.shared(theirs):
            continue
        difference = ours.minus(theirs)
        shown = verdict(difference, CLAIMED) if better else verdict_not_worse(difference, MARGIN)
        if used > bits * (1 + MORE_BITS) and shown == "reproduced":
            shown = "not distinguishable"
        claims.append(
            points_claim(
                f"At {snr_db:g} dB {label} is {'more accurate' if better else 'not worse'} than "
                "AdaLoRA at as many bits.",
                difference,
                shown,
                ours.shared(theirs),
                f"AirLLM sends {used / 1e6:.2f} Mbit, AdaLoRA {bits / 1e6:.2f}; with over "
                f"{MORE_BITS:.0%} more nothing counts as reproduced."
                + ("" if better else f" {NOT_WORSE}"),
                paper="+0.36 to +0.46 points (Fig. 4)" if better else "",
            )
        )
    return claims


def fewer_parameters(
    points: Points,
    name: str = "airllm",
    snr_db: float = FULL_RANK_AT_DB,
    label: str = "AirLLM (λ = 0.1)",
    note: str = "AirLLM's plan for 15 dB.",
) -> list[Claim]:
    """Return the claim of 12.5 % fewer parameters at r_max = 8 for some plans of one link."""
    adalora = points.get("adalora", {}).get(FULL_RANK_AT_DB)
    ours = points.get(name, {}).get(snr_db)
    if adalora is None or ours is None or not ours[1].shared(adalora[1]):
        return []
    difference, saved = ours[1].minus(adalora[1]), 1 - ours[0] / adalora[0]
    return [
        points_claim(
            f"At r_max = 8 {label} matches AdaLoRA's accuracy with at least 12.5 % fewer "
            "parameters.",
            difference,
            verdict_not_worse(difference, MARGIN) if saved >= 0.125 else "smaller than claimed",
            ours[1].shared(adalora[1]),
            f"AdaLoRA trained to a mean rank of 8; {note} {NOT_WORSE}",
            paper="+0.46 points with 10.2 % fewer",
            more=f" with {saved:.1%} fewer",
        )
    ]


def _against_others(points: Points) -> list[Claim]:
    """Return AirLLM beside every other allocator, over the links that both were judged on."""
    claims = []
    for name, mine in points.items():
        if name in ("adalora", "airllm-0"):
            continue
        shared = [snr for snr in mine if snr in points.get("airllm-0", {})]
        if not shared:
            continue
        ours, theirs = _mean_over(points["airllm-0"], shared), _mean_over(mine, shared)
        if not ours.shared(theirs):
            continue
        difference = ours.minus(theirs)
        bits = [points["airllm-0"][s][0] / max(mine[s][0], 1.0) for s in shared]
        claims.append(
            points_claim(
                f"AirLLM (λ = 0) against {LABELS[name]}.",
                difference,
                "measured",
                ours.shared(theirs),
                f"Mean over {', '.join(f'{s:g}' for s in shared)} dB; AirLLM sends "
                f"{np.mean(bits):.2f} times as many bits.",
            )
        )
    return claims


def _mean_over(points: Mapping[float, Point], links: Sequence[float]) -> Answers:
    """Return the share of links on which each text was answered rightly."""
    correct = np.mean([points[snr][1].correct for snr in links], axis=0)
    return Answers(correct, points[links[0]][1].seeds)


def _table(points: Points) -> Table:
    links = [snr for snr in SNRS_DB if any(snr in at for at in points.values())]
    lines = tuple(
        (
            LABELS[name],
            *(
                f"{percent(at[snr][1].accuracy, 1)}, {at[snr][0] / 1e6:.2f} Mbit"
                if snr in at
                else "–"
                for snr in links
            ),
            str(len(next(iter(at.values()))[1].seeds)),
        )
        for name, at in points.items()
    )
    columns = ("allocator", *(f"{snr:g} dB" for snr in links), "seeds")
    note = (
        "Share of 5,003 judged SST-2 texts answered rightly, with the 95 % interval over seeds and "
        "texts, and bits on the air at 32 bits a parameter. One nested training of MiniLM serves "
        "every link and allocator but AdaLoRA, trained once for each link, and SVD truncation, "
        "which cuts an ordinary training at rank 8."
    )
    return Table("Accuracy and bits at each link", columns, lines, note)


def _areas(points: Points) -> Table:
    """Return the area under each rate-accuracy curve, between budgets that all have."""
    several = {name: at for name, at in points.items() if len(at) > 1}
    low = max((min(bits for bits, _ in at.values()) for at in several.values()), default=0.0)
    upto = [bits for at in several.values() for snr, (bits, _) in at.items() if snr <= AREA_DB]
    high = max(upto, default=0.0)
    if not 0 < low < high:
        several = {}
    lines = []
    for name, at in several.items():
        links = sorted(at)
        seeds = sorted(set.intersection(*(set(at[snr][1].seeds) for snr in links)))
        answers = np.array([[at[snr][1].of_seed(seed) for snr in links] for seed in seeds])
        area = auc_interval([at[snr][0] for snr in links], answers, low, high, 0)
        lines.append((LABELS[name], percent(area), str(len(seeds))))
    note = (
        f"Mean accuracy between {low / 1e6:.2f} and {high / 1e6:.2f} Mbit, by the logarithm of the "
        "bits, linear between links; beyond the largest plan its accuracy holds."
    )
    return Table(
        "Area under the rate-accuracy curve", ("allocator", "area", "seeds"), tuple(lines), note
    )


def _chart(points: Points) -> LineChart:
    series = (
        accuracy_series(LABELS[name], [(bits / 1e6, answers) for bits, answers in at.values()])
        for name, at in points.items()
    )
    return LineChart(
        "Accuracy against bits on the air",
        "bits [Mbit]",
        "accuracy [%]",
        tuple(series),
        log_x=True,
        markers=True,
        note="Real model; bands: 95 % over seeds and texts.",
    )


def _answer(points: Points) -> tuple[str, Table | None]:
    """Show which allocator is the most accurate and how sure that is, from the numbers."""
    best = {
        name: float(np.mean([at[snr][1].accuracy.value for snr in FEW_DB]))
        for name, at in points.items()
        if all(snr in at for snr in FEW_DB)
    }
    if not best:
        return "", None
    ours = _mean_over(points["airllm-0"], FEW_DB) if "airllm-0" in best else None
    lines = []
    for name in sorted(best, key=lambda name: -best[name]):
        theirs = _mean_over(points[name], FEW_DB)
        same = ours is None or name == "airllm-0" or not ours.shared(theirs)
        compared = ("–", "–") if same or ours is None else _compared(ours, theirs)
        lines.append((LABELS[name], f"{100 * best[name]:.1f}", *compared))
    links = " and ".join(f"{s:g}" for s in FEW_DB)
    text = (
        f"Mean accuracy at {links} dB on the real model, best first, and by how many points "
        f"AirLLM (λ = 0) is ahead, with 95 % intervals."
    )
    columns = ("allocator", "accuracy [%]", "AirLLM (λ = 0) minus it", "distinguishable")
    return text, Table(f"Allocators at {links} dB", columns, tuple(lines))


def _compared(ours: Answers, theirs: Answers) -> tuple[str, str]:
    """Return by how many points ours is ahead, and whether the interval excludes 0."""
    less = ours.minus(theirs).scaled(100)
    apart = less.low > 0 or less.high < 0
    return f"{less.value:+.2f} ({less.low:+.2f} to {less.high:+.2f})", "yes" if apart else "no"
