"""Block error rates of 5G NR's codes, simulated block by block."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from rankcast.files import replace_file
from rankcast.link.bler import Waterfall
from rankcast.link.nr import Mcs, base_graph, mcs_table
from studies.bler.fitting import Count, fit_waterfall, through_awgn
from studies.harness.spec import (
    Claim,
    Job,
    LineChart,
    Presentation,
    Result,
    Row,
    RunContext,
    Scale,
    Series,
    Study,
    Table,
)

if TYPE_CHECKING:
    from rankcast.phy.code_blocks import CodeBlocks

N_BLOCKS = {640: 300, 2000: 300, 3840: 100, 8448: 50}
"""Blocks at each SNR of the fine search, by information bits; half at both ends."""
MOST_CURVES = 7
"""A chart tells so many apart."""

COMPARED = {(2, 308.0): (4, -1.65), (4, 490.0): (13, 6.05), (6, 567.0): (20, 11.75)}
"""MCS of table 1 and threshold [dB] of an ideal receiver at 10 %, which ours may miss by 0.3 dB."""
FINE = (-1.4, -0.7, 0.0, 0.7, 1.4, 2.1)
"""SNRs of the fine search as multiples of the expected width from the middle."""


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each scheme of either table of TS 38.214."""
    schemes = {(m.bits_per_symbol, m.rate_x1024): m
               for name in ("64qam", "256qam") for m in mcs_table(name)}  # fmt: skip
    if scale == "quick":
        return [_job(schemes[4, 490.0], {640: 8})]
    return [_job(mcs, _sizes(mcs)) for _, mcs in sorted(schemes.items())]


def _sizes(mcs: Mcs) -> Mapping[int, int]:
    largest = 3840 if base_graph(8448, mcs.code_rate) == 2 else 8448
    wanted = [640, 3840] if largest == 3840 else [640, 3840, 8448]
    if (mcs.bits_per_symbol, mcs.rate_x1024) in COMPARED:
        wanted.append(2000)
    return {size: N_BLOCKS[size] for size in sorted(wanted)}


def _job(mcs: Mcs, n_blocks: Mapping[int, int]) -> Job:
    settings = {
        "bits_per_symbol": mcs.bits_per_symbol,
        "rate_x1024": mcs.rate_x1024,
        "n_blocks": {str(size): n for size, n in n_blocks.items()},
    }
    return Job(f"q{mcs.bits_per_symbol}-r{mcs.rate_x1024:g}", 0, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Simulate blocks of every size; a finished size is kept."""
    s = job.settings
    mcs = Mcs(-1, s["bits_per_symbol"], s["rate_x1024"])
    waterfalls = []
    for size, n_blocks in s["n_blocks"].items():
        file = context.scratch / f"{size}.json"
        if not file.is_file():
            counts = _counts(mcs, int(size), n_blocks, job.seed)
            _keep(file, [[c.snr_db, c.n_blocks, c.n_lost] for c in counts])
        counts = [Count(*row) for row in json.loads(file.read_text("utf-8"))]
        curve = fit_waterfall(int(size), counts)
        waterfalls.append(
            {
                "n_info_bits": int(size),
                "middle_db": round(curve.middle_db, 4),
                "width_db": round(curve.width_db, 4),
                "middle_se_db": round(curve.middle_se_db, 4),
                "width_se_db": round(curve.width_se_db, 4),
                "counts": [[c.snr_db, c.n_blocks, c.n_lost] for c in counts],
            }
        )
    return {"waterfalls": waterfalls}


def _keep(file: Path, counts: list[list[float]]) -> None:
    replace_file(file, lambda path: path.write_text(json.dumps(counts), "utf-8"))


def _counts(mcs: Mcs, size: int, n_blocks: int, seed: int) -> list[Count]:
    """Find the middle by halving, then count around it."""
    from rankcast.phy.code_blocks import CodeBlocks  # noqa: PLC0415

    order = mcs.bits_per_symbol
    coded = order * math.ceil(size / mcs.code_rate / order)
    blocks = CodeBlocks(size, coded, order, base_graph(size - 16, mcs.code_rate))
    guess_db = 10 * math.log10(2**mcs.efficiency - 1) + 1.4
    width_db = 0.3 * math.sqrt(640 / size)
    few = max(8, n_blocks // 8)
    low, high, counts = guess_db - 2.0, guess_db + 2.0, []
    while high - low > width_db:
        middle = (low + high) / 2
        counts.append(_count(blocks, middle, few, (seed, size, len(counts))))
        half = counts[-1].n_lost * 2 > few
        low, high = (middle, high) if half else (low, middle)
    for place in FINE:
        at = (low + high) / 2 + place * width_db
        n = n_blocks if 0 <= place <= 1.4 else n_blocks // 2
        counts.append(_count(blocks, at, n, (seed, size, len(counts))))
    return counts


def _count(blocks: CodeBlocks, snr_db: float, n_blocks: int, seed: tuple[int, ...]) -> Count:
    import torch  # noqa: PLC0415

    entropy = int(np.random.SeedSequence(seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(entropy)
    snr_db, lost, done = round(snr_db, 3), 0, 0
    while done < n_blocks:
        at_once = min(n_blocks - done, max(1, 200_000 // blocks.n_info_bits))
        bits = torch.randint(0, 2, (at_once, blocks.n_info_bits), generator=generator).float()
        lost += int((through_awgn(blocks, bits, snr_db, generator) != bits).any(dim=1).sum())
        done += at_once
    return Count(snr_db, n_blocks, lost)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show where each scheme loses a tenth of its blocks, and the waterfalls."""
    del inputs
    if not result.rows:
        return Presentation()
    curves = [(row, [_waterfall(w) for w in row.values["waterfalls"]]) for row in result.rows]
    lines = []
    for row, waterfalls in curves:
        largest, mcs = waterfalls[-1], _mcs(row)
        shannon_db = 10 * math.log10(2**mcs.efficiency - 1)
        lines.append(
            (
                f"{mcs.bits_per_symbol}",
                f"{mcs.rate_x1024:g}",
                f"{mcs.efficiency:.3f}",
                ", ".join(f"{w.n_info_bits:,}: {w.snr_db_at(0.1):.2f}" for w in waterfalls),
                f"{largest.snr_db_at(0.1) - shannon_db:.2f}",
                f"{1.96 * max(w.middle_se_db for w in waterfalls):.2f}",
            )
        )
    columns = (
        "bits a symbol", "R·1024", "bit per RE", "SNR [dB] at 10 % by size of block",
        "above Shannon, largest block [dB]", "95 % of the middle ± [dB]",
    )  # fmt: skip
    table = Table("Thresholds", columns, tuple(lines), "Es/N0, AWGN, code blocks.")
    return Presentation(tuple(_claims(result)), (table,), (_chart(curves),))


def _claims(result: Result) -> list[Claim]:
    claims = []
    for row in result.rows:
        mcs = _mcs(row)
        index, expected_db = COMPARED.get((mcs.bits_per_symbol, mcs.rate_x1024), (0, 0.0))
        of_2000 = [w for w in map(_waterfall, row.values["waterfalls"]) if w.n_info_bits == 2000]
        if not of_2000:
            continue
        found_db, error_db = of_2000[0].snr_db_at(0.1), 1.96 * of_2000[0].middle_se_db
        claims.append(
            Claim(
                f"MCS {index} loses a tenth of blocks of 2,000 bits at no more than 0.3 dB above "
                f"{expected_db:g} dB.",
                "",
                f"{found_db:.2f} dB",
                (found_db - error_db, found_db + error_db),
                "reproduced" if found_db + error_db <= expected_db + 0.3 else "not met",
                result.seeds,
                "An ideal receiver: perfect channel knowledge, 20 iterations.",
            )
        )
    return claims


def _chart(curves: Sequence[tuple[Row, list[Waterfall]]]) -> LineChart:
    series = []
    for row, waterfalls in curves[:: -(-len(curves) // MOST_CURVES)]:
        curve = waterfalls[-1]
        snr_db = curve.middle_db + curve.width_db * np.linspace(-3.0, 3.0, 41)
        bler = special.ndtr((curve.middle_db - snr_db) / curve.width_db)
        label = f"{_mcs(row).efficiency:.2f} bit per RE"
        series.append(Series(label, snr_db.tolist(), bler.tolist()))
    return LineChart(
        "Waterfalls", "Es/N0 [dB]", "block error rate", tuple(series), log_y=True,
        note="Largest blocks.",
    )  # fmt: skip


def _mcs(row: Row) -> Mcs:
    return Mcs(-1, row.job.settings["bits_per_symbol"], row.job.settings["rate_x1024"])


def _waterfall(plain: Mapping[str, Any]) -> Waterfall:
    return Waterfall(**{name: value for name, value in plain.items() if name != "counts"})


STUDY = Study(
    name="bler",
    title="Block error rates of 5G NR",
    source="ours",
    question="At which SNR does each modulation and coding scheme of 5G NR lose its blocks?",
    jobs=jobs,
    run=run,
    present=present,
)
