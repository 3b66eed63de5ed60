"""Present `equal_bytes`: accuracy by link, and differences to ours that are paired by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankcast.records import IntArray
from studies.byte_frontier.curves import method_label
from studies.equal_bytes.paper_claims import Sender, against_adalora, fewer_bytes, fewer_table
from studies.equal_bytes.plans import (
    BETWEEN_DB,
    CHOOSERS,
    LINKS_DB,
    POLICY,
    SOLVER,
    WHOLE,
    budgets_bits,
)
from studies.harness.spec import Claim, LineChart, Presentation, Result, Table
from studies.report.statistics import verdict_equivalent, verdict_not_worse
from studies.shared.judging import (
    Answers,
    accuracy_series,
    percent,
    points,
    points_claim,
    unpack_groups,
)

HALF_A_POINT = 0.005
WORST_DB = (-5.0, 0.0)
"""Links that carry too little for the accuracy of float32."""
OURS = "ours, plans by {}"


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return accuracies over links, what was sent, and the claims."""
    del inputs
    senders = _senders(result)
    ours = senders.get(OURS.format(POLICY))
    if ours is None:
        return Presentation((), (), ())
    tables = [_accuracy_table(senders, LINKS_DB, "The paper's links")]
    tables.append(_accuracy_table(senders, BETWEEN_DB, "Links that no size was trained for"))
    tables.append(_difference_table(senders, ours))
    tables.append(_bytes_table(result))
    tables.append(fewer_table(senders, ours))
    pool = _pool(ours[LINKS_DB[0]])
    claims = (*against_adalora(senders, ours, pool), *fewer_bytes(senders, ours, pool),
              *_against_float32(result, ours), *_against_solver(senders, ours))  # fmt: skip
    return Presentation(tuple(claims), tuple(t for t in tables if t.rows), (_chart(senders),))


def _senders(result: Result) -> dict[str, Sender]:
    """Return everyone who sends: plans by the policy, peers, then plans by other choosers."""
    seen: dict[str, dict[float, list]] = {}
    groups = _groups(result)
    for row in result.rows:
        for sent in row.values["sent"]:
            label = _label(row.job.settings, sent)
            seen.setdefault(label, {}).setdefault(sent["snr_db"], []).append((row.job.seed, sent))
    order = {OURS.format(chooser): i for i, chooser in enumerate(CHOOSERS)}
    first = OURS.format(POLICY)
    labels = sorted(seen, key=lambda n: (n != first, n in order, order.get(n, 0), n))
    found: dict[str, Sender] = {}
    for label in labels:
        answers = {db: Answers.of(judged, groups) for db, judged in seen[label].items()}
        found[label] = {db: a for db, a in answers.items() if a is not None}
    return found


def _label(settings: Mapping, sent: Mapping) -> str:
    if settings["kind"] == "ours":
        return OURS.format(sent["chooser"])
    return f"{method_label(settings['method'], settings['size'])}, best code"


def _groups(result: Result) -> IntArray | None:
    for row in result.rows:
        if "groups" in row.values:
            return unpack_groups(row.values["groups"], row.values["sent"][0]["n_texts"])
    return None


def _accuracy_table(senders: Mapping[str, Sender], links: Sequence[float], title: str) -> Table:
    rows = []
    for label, by_link in senders.items():
        cells = [f"{100 * by_link[db].accuracy.value:.2f}" for db in links]
        rows.append((label, *cells, str(len(by_link[links[0]].seeds))))
    budgets = [int(bits // 8) for bits in budgets_bits(tuple(links))]
    heads = [f"{db:g} dB ({n:,} B)" for db, n in zip(links, budgets, strict=True)]
    note = "Accuracy in percent, mean over seeds; in brackets the bytes that arrive in a second."
    return Table(title, ("sender", *heads, "seeds"), tuple(rows), note)


def _difference_table(senders: Mapping[str, Sender], ours: Sender) -> Table:
    rows = []
    for label, theirs in senders.items():
        cells = [_difference(ours[db], theirs[db]) for db in (*LINKS_DB, *BETWEEN_DB)]
        if theirs is not ours:
            rows.append((label, *cells))
    heads = [f"{db:g} dB" for db in (*LINKS_DB, *BETWEEN_DB)]
    note = "Points, with 95 % intervals over seeds and texts, paired by both."
    title = f"Ours, plans by {POLICY}, minus others"
    return Table(title, ("minus", *heads), tuple(rows), note)


def _difference(ours: Answers, theirs: Answers) -> str:
    if not ours.shared(theirs):
        return "–"
    return points(ours.minus(theirs))


def _bytes_table(result: Result) -> Table:
    """Return what was sent: codes of peers, bytes of ours."""
    rows = []
    for row in result.rows:
        if row.job.settings["kind"] != "peer":
            continue
        by_link = {sent["snr_db"]: sent for sent in row.values["sent"]}
        label = method_label(row.job.settings["method"], row.job.settings["size"])
        cells = [f"{by_link[db]['code']} ({by_link[db]['bytes']:,.0f})" for db in LINKS_DB]
        rows.append((f"{label}, seed {row.job.seed}", *cells))
    heads = [f"{db:g} dB" for db in LINKS_DB]
    note = "Chosen by the loss on texts for tuning; bytes of peers are without any header."
    return Table("Codes of peers", ("adapter", *heads), tuple(rows), note)


def _against_float32(result: Result, ours: Sender) -> list[Claim]:
    """Compare with the best float32 adapter that any peer has trained, whatever it takes."""
    groups = _groups(result)
    peers: dict[str, list] = {}
    for row in result.select(kind="peer"):
        label = method_label(row.job.settings["method"], row.job.settings["size"])
        peers.setdefault(label, []).append((row.job.seed, row.values["float32"]))
    answers = {label: Answers.of(judged, groups) for label, judged in peers.items()}
    known = {label: a for label, a in answers.items() if a is not None}
    if not known:
        return []
    best = max(known, key=lambda label: known[label].accuracy.value)
    claims = []
    for db in (d for d in LINKS_DB if d not in WORST_DB):
        if not (seeds := ours[db].shared(known[best])):
            continue
        difference = ours[db].minus(known[best])
        text = (
            f"At {db:g} dB our plans ({label_bytes(db)}) are not more than half a point behind the "
            f"best float32 adapter that was trained ({best}, {percent(known[best].accuracy)})."
        )
        shown = verdict_not_worse(difference, HALF_A_POINT)
        claims.append(points_claim(text, difference, shown, seeds, _pool(ours[db])))
    return claims


def _against_solver(senders: Mapping[str, Sender], ours: Sender) -> list[Claim]:
    solver, every = senders.get(OURS.format(SOLVER)), (*LINKS_DB, *BETWEEN_DB)
    if solver is None:
        return []
    joined = [_over_links(sender, every) for sender in (ours, solver)]
    difference = joined[0].minus(joined[1])
    text = "Plans by the policy are within half a point of those of the exact solver on its belief."
    shown = verdict_equivalent(difference, HALF_A_POINT)
    note = "Mean over all nine links, on the same adapter."
    return [points_claim(text, difference, shown, joined[0].seeds, note)]


def _over_links(sender: Sender, links: Sequence[float]) -> Answers:
    """Return the mean answers over links."""
    first = sender[links[0]]
    mean = np.mean([sender[db].correct for db in links], axis=0)
    return Answers(mean, first.seeds, first.groups)


def label_bytes(snr_db: float) -> str:
    """Say what arrives over a link."""
    return f"{int(budgets_bits((snr_db,))[0] // 8):,} bytes"


def _pool(answers: Answers) -> str:
    return f"{answers.correct.shape[1]:,} texts, sentences are resampled whole"


def _chart(senders: Mapping[str, Sender]) -> LineChart:
    shown = {label: s for label, s in senders.items() if len(s) and _is_shown(label)}
    series = [accuracy_series(label, sorted(by.items())) for label, by in shown.items()]
    return LineChart(
        "Accuracy of what arrives within a second over 10 kHz", "SNR [dB]", "accuracy [%]",
        tuple(series), markers=True, note="Bands: 95 % intervals over seeds and texts.",
    )  # fmt: skip


def _is_shown(label: str) -> bool:
    return label in (OURS.format(POLICY), OURS.format(WHOLE)) or "best code" in label
