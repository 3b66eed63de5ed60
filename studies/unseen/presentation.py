"""What readers see: how much less or more each planner's files lose than today's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankcast.statistics import bootstrap_interval
from studies.harness.spec import Claim, Presentation, Result, Row, Table
from studies.report.statistics import Estimate, verdict
from studies.unseen.measured import Measured
from studies.unseen.weights import target

TODAY = ("today", "")
NEW = {"seed": "another seed and rank", "task": "another task, seed and rank"}
LABELS = {
    "today": "reverse water-filling on spectra (`pack` today)",
    "uniform": "all components at one step",
    "kinds": "weights by kind of projection",
    "learned": "learned weights",
    "texts": "steps by sensitivity to texts",
    "measured": "weights measured on this adapter",
    "solved": "levels by exact solver, losses measured",
    "better": "better ones of two files at a gain of 1",
    "alone": "levels near the size, measured beside the whole adapter",
    "levels": "levels near the size, measured both ways",
    "three": "best ones of three files at a gain of 1",
    "curved": "numbers rounded by the curvature of the loss",
    "larger better": "better ones of two files at the gain that suits (`--level-texts 0`)",
    "larger levels": "levels near the size at the gain that suits",
    "larger curved": "numbers rounded by curvature at the gain that suits",
    "pack": "best ones of three files at the gain that suits (`pack --texts`)",
    "four": "best ones of four files at the gain that suits (`--curvature-texts 128`)",
}
LARGER = ("better", "levels", "curved")
"""Planners whose files are also made at the gain that suits."""
LEAST = 1e-6
"""Of a divergence [nats] before its logarithm is taken."""


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Compare every planner with today's, paired by adapter and size."""
    del inputs
    judged = joined([row for row in result.rows if row.job.settings["kind"] != "measure"])
    measured = [row for row in result.rows if row.job.settings["kind"] == "measure"]
    tables = [_sensitivities(measured)] if measured else []
    if not judged:
        return Presentation(tables=tuple(tables))
    claims = [
        *(_ahead(judged, ("learned", split), TODAY) for split in NEW),
        *(_ahead(judged, ("kinds", split), TODAY) for split in NEW),
        _ahead(judged, ("learned", "seed"), ("kinds", "seed")),
        _ahead(judged, ("texts", ""), TODAY),
        _ahead(judged, ("measured", ""), TODAY),
        _ahead(judged, ("solved", ""), TODAY),
        _ahead(judged, ("levels", ""), ("solved", "")),
        _ahead(judged, ("levels", ""), ("alone", "")),
        _ahead(judged, ("levels", ""), ("uniform", "")),
        _ahead(judged, ("three", ""), ("better", "")),
        _ahead(judged, ("curved", ""), ("better", "")),
        _ahead(judged, ("curved", ""), ("levels", "")),
        *(_ahead(judged, (f"larger {name}", ""), (name, "")) for name in LARGER),
        _ahead(judged, ("pack", ""), ("three", "")),
        _ahead(judged, ("four", ""), ("pack", "")),
        _ahead(judged, ("pack", ""), TODAY),
    ]
    tables = [_by_size(judged), _explained(judged), *tables]
    return Presentation(tuple(c for c in claims if c is not None), tuple(tables))


def joined(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each adapter, with the files of all its jobs."""
    found: dict[str, Row] = {}
    for row in rows:
        name = row.job.name.partition("-")[2]
        before = found[name].values if name in found else {"files": []}
        files = [*before["files"], *row.values["files"]]
        found[name] = replace(row, values={**before, **row.values, "files": files})
    return list(found.values())


Key = tuple[str, str]


def gains(rows: Sequence[Row], ours: Key, theirs: Key, size: float | None = None) -> list[float]:
    """Return for each adapter the mean over sizes of ln(their divergence / ours).

    Positive where ours loses less. Sizes at which either has no file are left out.
    """
    found = []
    for row in rows:
        a, b = (_divergences(row, key) for key in (ours, theirs))
        both = [s for s in a if s in b and size in (None, s)]
        if both:
            found.append(float(np.mean([math.log(b[s] / a[s]) for s in both])))
    return found


def _divergences(row: Row, key: Key) -> dict[float, float]:
    return {
        file["size"]: max(file["divergence"], LEAST)
        for file in row.values["files"]
        if (file["planner"], file["split"]) == key
    }


def estimate_of(values: Sequence[float]) -> Estimate:
    """Return the mean of values of adapters, resampling adapters; one adapter has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan, math.nan)
    return Estimate(mean, *bootstrap_interval(np.array(values), 0))


def less(gain: float) -> float:
    """Return by how many percent a divergence is less, of the logarithm of a ratio."""
    return 100.0 * -math.expm1(-gain)


def _ahead(rows: Sequence[Row], ours: Key, theirs: Key) -> Claim | None:
    """Return whether files of one planner lose less than another's."""
    found = gains(rows, ours, theirs)
    if not found:
        return None
    estimate = estimate_of(found)
    interval = estimate.interval and (less(estimate.low), less(estimate.high))
    where = f", on adapters of {NEW[ours[1]]}" if ours[1] else ""
    return Claim(
        f"{_label(ours[0])} lose less than {LABELS[theirs[0]]}{where}.",
        "",
        f"{less(estimate.value):+.1f} % less",
        interval,
        verdict(estimate),
        tuple(sorted({row.job.seed for row in rows})),
        f"Divergence from the adapter as trained at equal bytes: geometric mean over sizes and "
        f"{len(found)} adapters, which the interval resamples.",
    )


def _label(planner: str) -> str:
    words = LABELS[planner]
    return words[0].upper() + words[1:]


def _by_size(rows: Sequence[Row]) -> Table:
    """Return what each planner's files lose at each size."""
    sizes = sorted({file["size"] for row in rows for file in row.values["files"]})
    keys = dict.fromkeys(
        (file["planner"], file["split"]) for row in rows for file in row.values["files"]
    )
    order = {key: (list(LABELS).index(key[0]), list(NEW).index(key[1]) if key[1] else 0)
             for key in keys}  # fmt: skip
    lines = []
    for key in sorted(keys, key=order.__getitem__):
        cells = []
        for size in sizes:
            found = gains(rows, key, TODAY, size)
            shown = estimate_of(found) if found else None
            cells.append("–" if shown is None else _percent(shown))
        label = LABELS[key[0]] + (f", {NEW[key[1]]}" if key[1] else "")
        means = [_mean(rows, key, name) for name in ("loss", "accuracy")]
        lines.append((label, *cells, f"{means[0]:.4f}", f"{100 * means[1]:.1f}"))
    heads = (f"{size:g} bits a number" for size in sizes)
    return Table(
        "Divergence less than today's [%]",
        ("planner", *heads, "loss [nats]", "accuracy [%]"),
        tuple(lines),
        "Geometric means over adapters with 95 % intervals; loss and accuracy are means over sizes "
        "and adapters.",
    )


def _percent(estimate: Estimate) -> str:
    value = f"{less(estimate.value):+.1f}"
    if estimate.interval is None:
        return value
    return f"{value} ({less(estimate.low):+.1f} to {less(estimate.high):+.1f})"


def _mean(rows: Sequence[Row], key: Key, name: str) -> float:
    found = [
        file[name]
        for row in rows
        for file in row.values["files"]
        if (file["planner"], file["split"]) == key
    ]
    return float(np.mean(found))


def _explained(rows: Sequence[Row]) -> Table:
    """Return how well sensitivities are predicted."""
    lines = []
    for planner in ("kinds", "learned"):
        for split, word in NEW.items():
            name = f"{planner}, {split}"
            known = [row for row in rows if name in row.values.get("explained", {})]
            if known:
                share = estimate_of([100 * row.values["explained"][name] for row in known])
                n = np.mean([row.values["teachers"][split] for row in known])
                lines.append((LABELS[planner], word, f"{n:.1f}", f"{share:.0f}"))
    return Table(
        "Variance of log sensitivities explained",
        ("planner", "judged on", "adapters learned from", "explained [%]"),
        tuple(lines),
        "Within an adapter. Below 0 a constant predicts better. 95 % intervals resample adapters.",
    )


def _sensitivities(rows: Sequence[Row]) -> Table:
    """Return how sensitive each kind of projection is in the first and the last layer."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for kind, where, value in _of_adapter(row.values):
            found.setdefault((kind, where), []).append(value)
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    places = ("first", "between", "last")
    lines = [
        (kind, *(f"{estimate_of(found[kind, at]):.2f}" if (kind, at) in found else "–"
                 for at in places))
        for kind in kinds
    ]  # fmt: skip
    return Table(
        "Logarithm of a projection's sensitivity beside its adapter's mean",
        ("kind", *(f"{at} layer" if at != "between" else "layers between" for at in places)),
        tuple(lines),
        "Sensitivity is divergence for each squared error of the update. Means over adapters.",
    )


def _of_adapter(values: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Return kind, place and log sensitivity of each projection."""
    adapter = Measured.from_plain(values)
    last = adapter.n_layers - 1
    where = ["first" if at == 0 else "last" if at == last else "between" for at in adapter.layers]
    return list(zip(adapter.kinds, where, target(adapter).tolist(), strict=True))
