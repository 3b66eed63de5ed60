"""What readers see of the adapter that was measured: what hiding each part of the state costs.

Shapes: S seeds, `n` judged texts of all domains together, `D` domains, `L` links, `P` plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from rankcast.records import FloatArray, IntArray
from studies.domains.guessing import SHOWN
from studies.domains.measured import MEASURED, unpack_losses
from studies.harness.spec import Claim, Result, Row, Table
from studies.report.statistics import Estimate, pooled_bootstrap
from studies.shared.judging import unpack

TEXTS_OF_BATCH = 16
"""Of which the planner sees the means, where a domain has to be guessed."""
WORDS = {
    "known": "domain told",
    "both": "nothing hidden",
    "no-entropy": "without the lexical entropy",
    "no-oov": "without the OOV rate",
    "mixture": "without both",
    "snr": "without the SNR",
    "bandwidth": "without the bandwidth",
    "link": "without both of the link",
}
HIDDEN = tuple(name for name in WORDS if name not in {"known", "both"})
_SHOWN_WORDS = {"both": "both", "no-oov": "lexical entropy", "no-entropy": "OOV rate"}

OfText = Callable[["MeasuredRow"], FloatArray]
"""Returns (L, n) losses or right answers of a seed under some way to plan."""


@dataclass(frozen=True)
class MeasuredRow:
    """What a seed left."""

    row: Row

    @property
    def values(self) -> Mapping[str, Any]:
        """What the job returned."""
        return self.row.values

    @cached_property
    def links(self) -> FloatArray:
        """(L, 2) SNR [dB] and bandwidth [Hz]."""
        settings = self.row.job.settings["measured"]
        snrs, bandwidths = settings["snrs_db"], settings["bandwidths_hz"]
        return np.array([(snr, bandwidth) for bandwidth in bandwidths for snr in snrs])

    @cached_property
    def domain(self) -> IntArray:
        """(n,) domain of each judged text."""
        n_domains = len(self.values["domains"])
        return np.repeat(np.arange(n_domains), self.values["n_texts"] // n_domains)

    def of(self, answers: Mapping[str, str], what: str) -> FloatArray:
        """Return (n,) `loss` or `correct` of some answers."""
        if what == "loss":
            return unpack_losses(answers["loss"])
        return unpack(answers["correct"], self.values["n_texts"]).astype(np.float64)

    def table(self, what: str) -> FloatArray:
        """Return (L, P, n) `loss` or `correct` under every plan."""
        return np.array([[self.of(one, what) for one in each] for each in self.values["answers"]])

    def chosen(self, name: str) -> FloatArray:
        """Return (L, P, n) how often each plan is sent for the domain of each text.

        Args:
            name: `known`, `mixture`, `energy`, or what is shown of the text (`SHOWN`).
        """
        n_domains, n_links = len(self.values["domains"]), len(self.links)
        weights = np.zeros((n_links, n_domains + 2, len(self.domain)))
        if name == "known":
            weights[:, self.domain, np.arange(len(self.domain))] = 1.0
        elif name in SHOWN:
            found = np.array(self.values["texts"]["chosen"][f"{name}-{TEXTS_OF_BATCH}"])
            weights[:, : n_domains + 1] = found[:, self.domain].transpose(0, 2, 1)
        else:
            weights[:, n_domains + (name == "energy")] = 1.0
        return weights

    def under(self, name: str, what: str) -> FloatArray:
        """Return (L, n) `loss` or `correct` of texts under a way to plan that knows the link."""
        return (self.table(what) * self.chosen(name)).sum(axis=1)

    def without_link(self, hidden: Sequence[int], what: str) -> FloatArray:
        """Return (L, n) of a planner that sees the text, but not all of the link.

        One file is planned for all links that look alike: of those for each of them the one that
        is expected to bring most. Where it does not arrive in time, nothing does.

        Args:
            hidden: columns of `links`.
            what: `loss` or `correct`.
        """
        seen = [i for i in (0, 1) if i not in hidden]
        under, nothing = self.under("both", what), self.of(self.values["nothing"], what)
        weights, sizes = self.chosen("both"), np.array(self.values["file_bytes"])
        budgets, worths = np.array(self.values["budget_bytes"]), self._mixture_worths()
        found = np.empty_like(under)
        for i, link in enumerate(self.links):
            alike = np.flatnonzero((self.links[:, seen] == link[seen]).all(axis=1))
            arrive = sizes[alike].max(axis=1)[:, None] <= budgets[alike]  # (files, links)
            best = alike[np.argmax(worths[alike] * arrive.sum(axis=1))]
            late = (sizes[best] > budgets[i]).astype(np.float64)
            missed = (weights[best] * late[:, None]).sum(axis=0)
            on_time = (self.table(what)[best] * weights[best] * (1 - late)[:, None]).sum(axis=0)
            found[i] = on_time + missed * nothing
        return found

    def _mixture_worths(self) -> FloatArray:
        """Return (L,) what the plan for the mixture is expected to bring to it [nats]."""
        n_domains = len(self.values["domains"])
        return np.array(self.values["worths"])[:, n_domains].mean(axis=1)

    def way(self, name: str, what: str) -> FloatArray:
        """Return (L, n) under one of `WORDS`, or `energy`."""
        columns = {"snr": (0,), "bandwidth": (1,), "link": (0, 1)}
        if name in columns:
            return self.without_link(columns[name], what)
        return self.under(name, what)


def measured_rows(result: Result) -> tuple[MeasuredRow, ...]:
    """Return what the seeds left."""
    return tuple(MeasuredRow(row) for row in result.select(kind=MEASURED))


def measured_tables(rows: Sequence[MeasuredRow]) -> tuple[Table, ...]:
    """Return what hiding costs, plans by link, and what domains and their texts have in common."""
    if not rows:
        return ()
    return (
        _hidden_table(rows),
        _link_table(rows),
        _guess_table(rows),
        _correlation_table(rows),
        _domain_table(rows),
    )


def cost_of_hiding(rows: Sequence[MeasuredRow], name: str, what: str = "loss") -> Estimate:
    """Return what a way to plan loses to the one from which nothing is hidden.

    Args:
        rows: of the seeds.
        name: of `WORDS`.
        what: `loss` [nats] or `correct` [share of answers].
    """
    sign = 1.0 if what == "loss" else -1.0
    differences = [sign * (row.way(name, what) - row.way("both", what)).mean(0) for row in rows]
    return pooled_bootstrap(differences, 0)


def domain_worth(rows: Sequence[MeasuredRow], link: int | None = None) -> Estimate:
    """Return by how much plans for the domain lose less than one for the mixture [nats].

    Args:
        rows: of the seeds.
        link: its number; None for the mean over all.
    """
    chosen = slice(None) if link is None else slice(link, link + 1)
    differences = [
        (row.under("mixture", "loss") - row.under("known", "loss"))[chosen].mean(0) for row in rows
    ]
    return pooled_bootstrap(differences, 0)


def _hidden_table(rows: Sequence[MeasuredRow]) -> Table:
    lines = []
    for name, words in WORDS.items():
        loss = np.mean([row.way(name, "loss").mean() for row in rows])
        right = np.mean([row.way(name, "correct").mean() for row in rows])
        cells = ("–", "–")
        if name != "both":
            nats, share = (cost_of_hiding(rows, name, what) for what in ("loss", "correct"))
            cells = f"{nats:+.4f}", f"{share.scaled(100):+.2f}"
        lines.append((words, f"{loss:.4f}", f"{100 * right:.2f} %", *cells))
    return Table(
        "MiniLM: what hiding a part of the state costs",
        ("planner", "loss [nats]", "accuracy", "loses [nats]", "loses [points]"),
        tuple(lines),
        f"Mean over {len(rows[0].links)} links and all domains. The domain is guessed from the "
        f"mean H and ρ of {TEXTS_OF_BATCH} texts. Without the SNR or the bandwidth one file is "
        f"sent whatever that is, and nothing is there where it comes too late. 95 % intervals over "
        f"seeds and texts.",
    )


def _link_table(rows: Sequence[MeasuredRow]) -> Table:
    lines = []
    for i, (snr_db, bandwidth_hz) in enumerate(rows[0].links.tolist()):
        losses = [
            f"{np.mean([row.under(name, 'loss')[i].mean() for row in rows]):.4f}"
            for name in ("energy", "mixture", "known")
        ]
        link = (f"{snr_db:g}", f"{bandwidth_hz / 1e3:g}", f"{rows[0].values['budget_bytes'][i]:,}")
        lines.append((*link, *losses, f"{domain_worth(rows, i):+.4f}"))
    whole, nothing = (
        np.mean([row.of(row.values[name], "loss").mean() for row in rows])
        for name in ("whole", "nothing")
    )
    return Table(
        "MiniLM: loss by link",
        (
            "SNR [dB]", "kHz", "bytes", "by energy [nats]", "for the mixture [nats]",
            "for the domain [nats]", "the domain is worth [nats]",
        ),
        tuple(lines),
        f"All levels in float32 lose {whole:.4f} nats, no adapter {nothing:.4f}. Plans by energy "
        f"need no texts. 95 % intervals over seeds and texts.",
    )  # fmt: skip


def _guess_table(rows: Sequence[MeasuredRow]) -> Table:
    sizes = rows[0].row.job.settings["measured"]["batch_sizes"]
    lines = []
    for shown, words in _SHOWN_WORDS.items():
        shares = [_accuracy(rows, shown, size) for size in sizes]
        lines.append((words, *(f"{100 * share:.1f} %" for share in shares)))
    return Table(
        "MiniLM: how often the domain of a batch is guessed",
        ("shown", *(f"{size} texts" if size > 1 else "1 text" for size in sizes)),
        tuple(lines),
        "By Bayes' rule with the moments of other texts. By chance it would be a third.",
    )


def _accuracy(rows: Sequence[MeasuredRow], shown: str, size: int = TEXTS_OF_BATCH) -> float:
    name = f"{shown}-{size}"
    return float(np.mean([row.values["texts"]["accuracy"][name] for row in rows]))


def _correlation_table(rows: Sequence[MeasuredRow]) -> Table:
    names = rows[0].values["domains"]
    lines = []
    for a, b in combinations(range(len(names)), 2):
        found = [
            correlation(rows, a, b, corrected=corrected, by=by)
            for by in ("correlations", "correlations_by_labels")
            for corrected in (False, True)
        ]
        lines.append((f"{names[a]}, {names[b]}", *map(_number, found)))
    return Table(
        "MiniLM: correlation of gains between domains",
        (
            "domains", "as measured", "without errors of measuring", "by labels, as measured",
            "by labels, without errors",
        ),
        tuple(lines),
        "Over all projections and levels; mean of seeds. Gains that plans are made by are of the "
        "divergence from the whole adapter's answers; those by labels are of the loss itself.",
    )  # fmt: skip


def _domain_table(rows: Sequence[MeasuredRow]) -> Table:
    lines = []
    for d, name in enumerate(rows[0].values["domains"]):
        cells = []
        for answers in ("nothing", "whole"):
            for what in ("loss", "correct"):
                found = [row.of(row.values[answers], what)[row.domain == d].mean() for row in rows]
                cells.append(float(np.mean(found)))
        texts = rows[0].values["texts"]
        stats = [
            f"{mean:.2f} ± {deviation:.2f}"
            for mean, deviation in zip(texts["means"][d], texts["deviations"][d], strict=True)
        ]
        sure = np.mean([row.values["shares"][d] for row in rows])
        of_none, of_all = f"{cells[0]:.3f} ({cells[1]:.1%})", f"{cells[2]:.3f} ({cells[3]:.1%})"
        lines.append((name, *stats, of_none, of_all, f"{sure:.2f}"))
    return Table(
        "MiniLM: the domains",
        ("domain", "H of a text", "ρ of a text", "no adapter", "whole adapter", "sure"),
        tuple(lines),
        "± is the standard deviation of texts. Loss in nats, and accuracy. Sure: how much of the "
        "deviation of a domain's gains from the mean of domains is no error of measuring.",
    )


def correlation(
    rows: Sequence[MeasuredRow], a: int, b: int, *, corrected: bool, by: str = "correlations"
) -> float | None:
    """Return the correlation of the gains of two domains, mean over the seeds that have one."""
    found = [row.values[by][int(corrected)][a][b] for row in rows]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _mean_correlation(rows: Sequence[MeasuredRow]) -> float | None:
    pairs = combinations(range(len(rows[0].values["domains"])), 2)
    known = [correlation(rows, a, b, corrected=True) for a, b in pairs]
    found = [value for value in known if value is not None]
    return float(np.mean(found)) if found else None


def measured_claims(rows: Sequence[MeasuredRow]) -> list[Claim]:
    """Return what the domain is worth on the real model, and what hiding each part costs."""
    if not rows:
        return []
    seeds = tuple(row.row.job.seed for row in rows)
    n_texts = rows[0].values["n_texts"]
    note = (
        f"Real loss of the real model on {n_texts:,} texts, mean over {len(rows[0].links)} links."
    )

    def claim(words: str, found: Estimate) -> Claim:
        ours = f"{found.value:+z.4f} nats"
        return Claim(words, "", ours, found.interval, "measured", seeds, note)

    claims = [
        claim(
            "On MiniLM, a plan for the batch's domain loses less than one for the mixture.",
            domain_worth(rows),
        )
    ]
    for name in HIDDEN:
        words = f"On MiniLM, a planner {WORDS[name]} loses more than one that sees everything."
        claims.append(claim(words, cost_of_hiding(rows, name)))
    return claims


def measured_answer(rows: Sequence[MeasuredRow]) -> str:
    """Return in sentences what came of the real model."""
    if not rows:
        return ""
    worth, n = domain_worth(rows), _mean_correlation(rows)
    alike = "" if n is None else f", whose gains correlate by {n:.2f} between domains"
    costs = {name: cost_of_hiding(rows, name) for name in HIDDEN}
    return (
        f"On MiniLM with one adapter for SST-2, AG News and docstrings{alike}, a plan for the "
        f"batch's domain loses {worth:.4f} nats less than one for the mixture. H and ρ of "
        f"{TEXTS_OF_BATCH} texts name the domain in {100 * _accuracy(rows, 'both'):.1f} % of "
        f"batches. Hiding both costs {costs['mixture']:.4f} nats, hiding H alone "
        f"{costs['no-entropy']:.4f}, hiding ρ alone {costs['no-oov']:.4f}, hiding the SNR "
        f"{costs['snr']:.4f} and hiding the bandwidth {costs['bandwidth']:.4f}."
    )
