"""The paper's two claims about AdaLoRA, in bytes that arrive instead of parameters.

Fig. 4: AirLLM is more accurate on every link. Table IV: it is as accurate with at least 12.5 %
fewer parameters. Their verdicts at 32 bits a parameter are those of `fig4` and `table4`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from studies.equal_bytes.plans import BETWEEN_DB, LINKS_DB, budgets_bits
from studies.harness.spec import Claim, Table
from studies.rate_accuracy.presentation import CLAIMED, MARGIN, NOT_WORSE
from studies.report.statistics import verdict, verdict_not_worse
from studies.shared.judging import Answers, points, points_claim

Sender = Mapping[float, Answers]
"""Answers of what one sender sends, by SNR [dB]."""

BEST_DB = LINKS_DB[-1]
NARROWER_DB = tuple(sorted({*LINKS_DB, *BETWEEN_DB} - {BEST_DB}, reverse=True))
"""Links that carry fewer bytes than the best one, from wide to narrow."""
FEWER = 0.125
"""Share of the bytes that has to be saved."""


def against_adalora(senders: Mapping[str, Sender], ours: Sender, note: str) -> Iterator[Claim]:
    """Yield whether ours is more accurate than each AdaLoRA, link by link and byte for byte."""
    for label, theirs in _adaloras(senders).items():
        for db in LINKS_DB:
            if seeds := ours[db].shared(theirs[db]):
                difference = ours[db].minus(theirs[db])
                who = f"our plans are more accurate than {label} ({_bytes(db):,} bytes)."
                yield points_claim(
                    f"At {db:g} dB {who}", difference, verdict(difference, CLAIMED), seeds, note,
                    paper="+0.36 to +0.46 points (Fig. 4)",
                )  # fmt: skip


def fewer_bytes(senders: Mapping[str, Sender], ours: Sender, note: str) -> Iterator[Claim]:
    """Yield whether ours is as accurate over the first link that carries enough fewer bytes."""
    db = next(db for db in NARROWER_DB if saved(db) >= FEWER)
    for label, theirs in _adaloras(senders).items():
        if seeds := ours[db].shared(theirs[BEST_DB]):
            difference = ours[db].minus(theirs[BEST_DB])
            yield points_claim(
                f"With at least {FEWER:.1%} fewer bytes our plans are as accurate as {label} at "
                f"{BEST_DB:g} dB.",
                difference, verdict_not_worse(difference, MARGIN), seeds,
                f"Our plan for {db:g} dB. {NOT_WORSE} {note}",
                paper="+0.46 points with 10.2 % fewer", more=f" with {saved(db):.1%} fewer",
            )  # fmt: skip


def fewer_table(senders: Mapping[str, Sender], ours: Sender) -> Table:
    """Return our plans over narrower links minus each AdaLoRA over the best one."""
    rows = []
    for label, theirs in _adaloras(senders).items():
        best = theirs[BEST_DB]
        cells = [
            points(ours[db].minus(best)) if ours[db].shared(best) else "–" for db in NARROWER_DB
        ]
        rows.append((f"{label}, {BEST_DB:g} dB", *cells))
    heads = [f"{db:g} dB ({saved(db):.0%} fewer)" for db in NARROWER_DB]
    note = "Points, with 95 % intervals over seeds and texts, paired by both; bytes that arrive."
    return Table("Our plans with fewer bytes minus AdaLoRA", ("minus", *heads), tuple(rows), note)


def saved(snr_db: float) -> float:
    """Return the share of the bytes of the best link that a link does not carry."""
    return 1 - _bytes(snr_db) / _bytes(BEST_DB)


def _bytes(snr_db: float) -> int:
    return int(budgets_bits((snr_db,))[0] // 8)


def _adaloras(senders: Mapping[str, Sender]) -> dict[str, Sender]:
    return {label: sender for label, sender in senders.items() if label.startswith("AdaLoRA")}
