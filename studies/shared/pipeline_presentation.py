"""Present `second_task` and `second_model`: AirLLM beside its rivals, paired by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from studies.harness.spec import Claim, Presentation, Result, Row, Table
from studies.shared.judging import Answers, direct_answers, live_answers, percent, points_claim
from studies.shared.pipeline import ADALORA_DB, JUDGED_DB
from studies.shared.rewards import plan_bits
from studies.shared.tasks import BITS_PER_PARAM

OURS = "airllm"
LABELS = {
    OURS: "AirLLM",
    "uniform": "uniform ranks at AirLLM's bits",
    "knapsack": "knapsack on the learned utility",
    "adalora": "AdaLoRA at AirLLM's parameters",
}

Point = tuple[float, Answers]  # mean bits, answers
Points = Mapping[str, Mapping[float, Point]]


def present(result: Result, inputs: Mapping[str, Result], *, what: str, note: str) -> Presentation:
    """Return accuracies, paired differences and the quality of the fits.

    Args:
        result: rows of `run_pipeline`.
        inputs: not used.
        what: the model and the texts, for titles.
        note: what a reader has to know to judge any of it.
    """
    del inputs
    if not result.rows:
        return Presentation()
    points = points_of(result.rows)
    claims = tuple(
        _claim(points, rival, snr_db, what)
        for rival in LABELS
        for snr_db in JUDGED_DB
        if rival != OURS and snr_db in points[rival] and snr_db in points[OURS]
    )
    return Presentation(claims, (_accuracies(points, what, note), _fits(result.rows)), text=note)


def points_of(rows: Sequence[Row]) -> Points:
    """Return mean bits and answers of each method at each link on which it was judged."""
    points: dict[str, dict[float, Point]] = {name: {} for name in LABELS}
    for name in LABELS:
        if name == "adalora":
            continue
        own = [replace(row, values=row.values["methods"][name]) for row in rows]
        for snr_db in JUDGED_DB:
            answers = live_answers(own, snr_db)
            if answers is not None:
                points[name][snr_db] = (float(plan_bits(own, snr_db).mean()), answers)
    own = [replace(row, values=row.values["adalora"]) for row in rows]
    answers = direct_answers(own)
    if answers is not None:
        params = float(np.mean([row.values["sent_params"] for row in own]))
        points["adalora"][ADALORA_DB] = (BITS_PER_PARAM * params, answers)
    return points


def _claim(points: Points, rival: str, snr_db: float, what: str) -> Claim:
    """Return the paired difference to one rival on one link."""
    (used, ours), (bits, theirs) = points[OURS][snr_db], points[rival][snr_db]
    difference = ours.minus(theirs)
    return points_claim(
        f"{what}, {snr_db:g} dB: AirLLM against {LABELS[rival]}.",
        difference,
        "measured",
        ours.seeds,
        f"Real model, {ours.correct.shape[1]:,} judged texts; AirLLM sends {used / 1e6:.3f} Mbit, "
        f"the other {bits / 1e6:.3f}.",
    )


def _accuracies(points: Points, what: str, note: str) -> Table:
    links = [snr_db for snr_db in JUDGED_DB if snr_db in points[OURS]]
    lines = tuple(
        (
            LABELS[name],
            *(
                f"{percent(at[snr_db][1].accuracy, 1)}, {at[snr_db][0] / 1e6:.3f} Mbit"
                if snr_db in at
                else "–"
                for snr_db in links
            ),
        )
        for name, at in points.items()
        if at
    )
    return Table(
        f"{what}: accuracy on the real model and bits",
        ("method", *(f"{snr_db:g} dB" for snr_db in links)),
        lines,
        f"95 % intervals over seeds and texts. {note}",
    )


def _fits(rows: Sequence[Row]) -> Table:
    """Return how well each calibration predicts the loss of unseen plans."""
    lines = tuple(
        (
            row.job.name,
            f"{row.values['calibration']['quality']['r2']:.3f}",
            f"{row.values['calibration']['quality']['r2_share_only']:.3f}",
            f"{row.values['rank_0_loss']:.3f}",
            f"{row.values['full_rank_loss']:.3f}",
            f"{row.values['methods'][OURS]['objective']:.4f}",
            f"{row.values['oracle']:.4f}",
            f"{row.values['best_uniform']:.4f}",
        )
        for row in rows
    )
    columns = (
        "run", "held-out R²", "R² of the transmitted share alone", "loss at rank 0 [nats]",
        "loss at full rank [nats]", "U + λη of AirLLM", "of the exact solver",
        "of the best uniform rank",
    )  # fmt: skip
    return Table("The calibrated learners", columns, lines, "U + λη: mean over five links.")
