"""Present `llm`: loss of answers against bytes, and how far the best peer is behind ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from studies.harness.spec import LineChart, Presentation, Result, Series, Table
from studies.llm.claims import RISE, WAYS, ahead, claims_of, size_words, times_words
from studies.llm.codes import NOTHING, OURS, REFERENCE
from studies.llm.curves import Curve, Measured, TaskCurves, task_curves
from studies.llm.links import arrived_claims, arrived_table, everybody_sends
from studies.llm.texts import SST2, TITLES, unpack_numbers
from studies.report.statistics import Estimate, pooled_bootstrap


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show each task: bytes at nearly the loss of float32, every code, and the curves."""
    del inputs
    claims, tables, charts = [], [], []
    for task, title in TITLES.items():
        found = task_curves(result, task)
        if found is None:
            continue
        claims += claims_of(found, title)
        tables += [_headline(found, title), _curves(found, title)]
        if everybody_sends(found):
            claims += arrived_claims(found, title)
            tables.append(arrived_table(found, title))
        charts.append(_chart(found, title))
    for task, title in TITLES.items():
        found = task_curves(result, task)
        if found is not None:
            tables.append(_every_code(found, task, title))
            tables += _engine(result, found, task, title)
    tables += _tuning(result)
    return Presentation(tuple(claims), tuple(tables), tuple(charts), _text(result))


def _headline(found: TaskCurves, title: str) -> Table:
    """Return the bytes of the best peer and of ours at `RISE` above float32."""
    lines = []
    for source in ("", *found.exact):
        for how, (families, _, _) in WAYS.items():
            one = ahead(found, families, source)
            if one is not None:
                r = one.reached
                lines.append((
                    f"LoRA r {source}" if source else "best of any rank", how,
                    size_words(r.theirs), r.peer or "–", size_words(r.ours), r.mine or "–",
                    times_words(r.times), _seeds(one.seeds),
                ))  # fmt: skip
    columns = (
        "float32 adapter", "ours", "bytes of the best peer", "peer", "bytes of ours", "file",
        "ratio", "seeds",
    )  # fmt: skip
    note = (
        f"Bytes at {RISE} nats per token above the float32 adapter, on the hull of each curve over "
        f"the logarithm of the bytes. Peers: numbers only; ours: whole files."
    )
    return Table(f"{title}: bytes at nearly the loss of float32", columns, tuple(lines), note)


def _curves(found: TaskCurves, title: str) -> Table:
    """Return the bytes of each curve at `RISE` above its own reference and the best one."""
    lines = []
    for curve in found.curves:
        exact = found.exact.get(curve.source)
        own = [] if exact is None else [s for s in curve.seeds if s in exact.bytes_of]
        level = exact.loss(own) + RISE if exact is not None and own else None
        same = "–" if level is None else _bytes(curve, level, own)
        seeds = curve.seeds
        known = bool(seeds) and any(set(seeds) <= set(m.seeds) for m in found.exact.values())
        best = _bytes(curve, found.best(seeds)[1] + RISE, seeds) if known else "–"
        lines.append((curve.label, same, best, _seeds(curve.seeds)))
    columns = ("curve", "bytes, same rank", "bytes, best of any rank", "seeds")
    note = f"Bytes at {RISE} nats per token above float32: of the same rank, and of the best rank."
    return Table(f"{title}: curves", columns, tuple(lines), note)


def _bytes(curve: Curve, level: float, seeds: Sequence[int]) -> str:
    size = curve.bytes_at(level, seeds)
    return size_words(size) if np.isfinite(size) else "not reached"


def _every_code(found: TaskCurves, task: str, title: str) -> Table:
    """Return a line for each adapter and code."""
    best, _ = found.best(_most_seeds(found))
    lines = [_line("–", found.alone, found.exact[best], task)]
    for curve in found.curves:
        exact = found.exact.get(curve.source, found.exact[best])
        lines += [_line(curve.label, m, exact, task) for m in curve.codes]
    right = ("right",) if task == SST2 else ()
    columns = (
        "adapter", "code", "bytes", "loss [nats per token]", "rise over float32", "KL", "agreement",
        *right, "seeds",
    )  # fmt: skip
    note = (
        f"Rise over float32 of the same rank; of files without a rank, over {best}. 95 % intervals "
        f"over seeds and answers, paired. KL(float32 ‖ code) [nats per token] and the share of "
        f"tokens with the same likeliest word, of every fourth batch of answers, to the float32 "
        f"adapter of the same rank."
    )
    if task == SST2:
        note += " Right: texts all of whose answer's tokens are the likeliest."
    return Table(f"{title}: codes", columns, tuple(lines), note)


def _most_seeds(found: TaskCurves) -> list[int]:
    """Return the seeds of the float32 adapter that has most."""
    return list(max((m.seeds for m in found.exact.values()), key=len))


def _line(label: str, m: Measured, exact: Measured, task: str) -> tuple[str, ...]:
    rise = "–" if m is exact or not m.shared(exact) else f"{m.minus(exact):+.4f}"
    numbers = tuple(
        f"{m.more[name]:{spec}}" if name in m.more else "–"
        for name, spec in (("divergence", ".4f"), ("agreement", ".1%"))
    )
    right = (f"{m.more['exact_match']:.2%}",) if task == SST2 else ()
    n_bytes = f"{m.n_bytes():,.0f}"
    return (label, m.code, n_bytes, f"{m.loss():.4f}", rise, *numbers, *right, _seeds(m.seeds))


def _engine(result: Result, found: TaskCurves, task: str, title: str) -> list[Table]:
    """Return what llama.cpp answers on the quantised base, beside the base in bfloat16."""
    lines = []
    for row in result.select(task=task, kind="engine"):
        v, rank, seed = row.values, str(row.job.settings["rank"]), row.job.seed
        if v["texts"] != found.texts.digest:
            continue
        theirs, counts = unpack_numbers(v["losses"]), unpack_numbers(v["counts"])
        here = _named(found, rank, v["code"])
        mine, rise = "–", "–"
        if here is not None and seed in here.losses:
            own = here.losses[seed][: len(theirs)]
            mine = f"{own.sum() / counts.sum():.4f}"
            rise = f"{_per_token(theirs - own, counts):+.4f}"
        loss = f"{theirs.sum() / counts.sum():.4f}"
        lines.append((f"LoRA r {rank}", v["code"], loss, mine, rise, str(len(theirs))))
    if not lines:
        return []
    columns = (
        "adapter", "code", "loss in llama.cpp", "loss in bfloat16", "difference", "answers",
    )  # fmt: skip
    note = (
        "Nats per token of the first answers. llama.cpp runs the GGUF as it is (Q4_K_M) with the "
        "adapter beside it; the other column is the dequantised base."
    )
    return [Table(f"{title}: on the quantised base", columns, tuple(lines), note)]


def _named(found: TaskCurves, rank: str, code: str) -> Measured | None:
    """Return a code of an adapter; None if it was not judged."""
    if code == NOTHING:
        return found.alone
    if code == REFERENCE:
        return found.exact.get(rank)
    every = (m for c in found.curves if c.source == rank and c.family in OURS for m in c.codes)
    return next((m for m in every if m.code == code), None)


def _per_token(difference: np.ndarray, counts: np.ndarray) -> Estimate:
    """Return the mean of a token of (n,) differences of answers, which are resampled."""
    return pooled_bootstrap((difference * (len(counts) / counts.sum()))[None], 0)


def _chart(found: TaskCurves, title: str) -> LineChart:
    """Return the loss over bytes of ours and of the peers of each rank."""
    series = tuple(
        Series(
            curve.label,
            [m.n_bytes() for m in curve.codes],
            [m.loss() for m in curve.codes],
        )
        for curve in found.curves
    )
    return LineChart(
        f"{title}: loss of answers against bytes", "bytes", "loss [nats per token]", series,
        log_x=True, markers=True, note="Mean over seeds; intervals are in the table of codes.",
    )  # fmt: skip


def _tuning(result: Result) -> list[Table]:
    """Return every learning rate that was tried."""
    tried: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    for row in result.select(kind="tuning"):
        key = row.job.settings["task"], row.job.settings["rank"]
        tried.setdefault(key, []).extend(row.values["candidates"])
    lines = []
    for (task, rank), candidates in tried.items():
        if candidates:
            best = min(candidates, key=lambda c: c["loss"])
            lrs = ", ".join(f"{lr:.2g}" for lr in sorted({c["lr"] for c in candidates}))
            name = f"{TITLES[task]}: LoRA r {rank}"
            lines.append((name, f"{best['lr']:.2g}", f"{best['loss']:.4f}", lrs))
    if not lines:
        return []
    columns = ("adapter", "learning rate", "loss [nats per token]", "tried")
    note = "Chosen by the loss on texts for tuning, with a seed that no result has."
    return [Table("Tuning", columns, tuple(lines), note)]


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _text(result: Result) -> str:
    """Say which codes are missing, and whether rows of other texts were left out."""
    sentences = []
    missing = sorted({name for row in result.rows for name in row.values.get("missing", ())})
    if missing:
        sentences.append(
            f"Some rows lack {', '.join(missing)}, which was not installed where they were made."
        )
    for task, title in TITLES.items():
        digests = {row.values["texts"] for row in result.select(task=task) if "texts" in row.values}
        if len(digests) > 1:
            sentences.append(
                f"Rows of {title} were made on {len(digests)} sets of texts, of which the first "
                f"counts: run the others again in one environment."
            )
    return " ".join(sentences)
