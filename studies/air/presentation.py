"""Present `air`: what a simulated air interface delivered, beside what was promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankcast.link.bler import BlerTable, Waterfall, nr_bler
from rankcast.link.capacity import Awgn
from rankcast.link.nr import Carrier
from rankcast.link.nr_link import NrLink, NrRate
from rankcast.records import FloatArray
from studies.harness.spec import Claim, LineChart, Presentation, Result, Row, Series, Table
from studies.report.statistics import t_interval

ADAPTER_BYTES = 15_000
GOAL_SHARE = 0.75
AGREEMENT = 0.10
_WIDE_HZ = 100e6
_RANGE_DB = np.arange(-5.0, 15.01, 0.25)
_FADINGS = {"none": "no fading", "rayleigh": "Rayleigh fading, walking"}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show promises beside deliveries."""
    del inputs
    if not result.rows:
        return Presentation()
    claims = [_share_of_shannon(result)]
    tables, charts = [], []
    for fading, label in _FADINGS.items():
        rows = result.select(what="delivered", fading=fading)
        if rows:
            claims.append(_agreement(rows, label))
            tables.append(_delivered_table(rows, label))
            charts.append(_chart(rows, label))
    adapters = result.select(what="adapter")
    if adapters:
        claims.append(_arrival(adapters))
        tables.append(_adapter_table(adapters))
    combined = result.select(what="combining")
    if combined:
        tables.append(_combining_table(combined))
    return Presentation(tuple(claims), tuple(tables), tuple(charts), *_summary(result))


def _summary(result: Result) -> tuple[str, Table | None]:
    """Show at each SNR what was promised and what was delivered without fading."""
    rows = result.select(what="delivered", fading="none")
    lines = []
    for snr_db in _snrs(rows):
        rates = _rates([r for r in rows if r.job.settings["snr_db"] == snr_db])
        lines.append((f"{snr_db:g}", *(f"{float(rate.mean()):.1f}" for rate in rates)))
    if not lines:
        return "", None
    n_seeds = len({row.job.seed for row in rows})
    columns = (
        "SNR [dB]", "promised by Shannon", "predicted by the table", "delivered by the simulation",
    )  # fmt: skip
    text = f"Mbit/s in 5 MHz without fading. Means of {n_seeds} seeds."
    return text, Table("Promised and delivered", columns, tuple(lines))


def _share_of_shannon(result: Result) -> Claim:
    """Return the mean over -5 to 15 dB of goodput per resource element against Shannon's."""
    carrier = Carrier.for_bandwidth(_WIDE_HZ)
    table, rng = nr_bler(), np.random.default_rng(0)
    shares = [_mean_share(_drawn(table, rng), carrier) for _ in range(100)]
    share = _mean_share(table, carrier)
    low, high = (float(np.quantile(shares, q)) for q in (0.025, 0.975))
    return Claim(
        "The best scheme's goodput is, on average over -5 to 15 dB, at least 0.75 of Shannon's "
        "rate per resource element.",
        "",
        f"{share:.3f}; net of overhead {share * carrier.efficiency:.3f} of Shannon's over the "
        f"channel",
        (low, high),
        "reproduced" if low >= GOAL_SHARE else "smaller than claimed",
        result.seeds,
        "100 MHz, table 1, mean of ratios; interval from the standard errors of the waterfalls.",
    )


def _mean_share(table: BlerTable, carrier: Carrier) -> float:
    rate = NrRate(NrLink(carrier, bler=table)).spectral_efficiency(_RANGE_DB)
    shannon = Awgn().spectral_efficiency(_RANGE_DB)
    return float((rate / carrier.efficiency / shannon).mean())


def _drawn(table: BlerTable, rng: np.random.Generator) -> BlerTable:
    """Return a table with every waterfall moved by its standard errors."""
    moved = {
        scheme: tuple(
            Waterfall(
                c.n_info_bits,
                c.middle_db + c.middle_se_db * rng.standard_normal(),
                max(c.width_db + c.width_se_db * rng.standard_normal(), 0.02),
            )
            for c in curves
        )
        for scheme, curves in table.waterfalls.items()
    }
    return BlerTable(moved, table.source)


def _agreement(rows: Sequence[Row], label: str) -> Claim:
    """Return how far the table is from the simulation in delivered bits, over all SNRs."""
    gaps = np.array([r.values["table"]["bits"] / r.values["simulated"]["bits"] - 1 for r in rows])
    by_link = [gaps[[r.job.settings["snr_db"] == snr_db for r in rows]].mean()
               for snr_db in _snrs(rows)]  # fmt: skip
    mean = t_interval(gaps)
    worst = max(by_link, key=abs)
    within = mean.interval is not None and max(abs(x) for x in mean.interval) <= AGREEMENT
    return Claim(
        f"{label}: the table and the simulation differ by less than 10 % in delivered bits.",
        "",
        f"{100 * mean.value:+.1f} % on average, {100 * worst:+.1f} % at the worst SNR",
        None if mean.interval is None else mean.scaled(100).interval,
        "reproduced" if within and abs(worst) <= AGREEMENT else "not met",
        tuple(sorted({r.job.seed for r in rows})),
        f"{sum(r.job.settings['n_slots'] for r in rows):,} slots of 1 ms, five SNRs; the same "
        f"slots for both.",
    )


def _arrival(rows: Sequence[Row]) -> Claim:
    gaps = np.array([r.values["air_time_s"] / r.values["foretold_s"] - 1 for r in rows])
    mean, exact = t_interval(gaps), all(r.values["exact"] for r in rows)
    by_link = [gaps[[r.job.settings["snr_db"] == snr_db for r in rows]].mean()
               for snr_db in _snrs(rows)]  # fmt: skip
    worst = max(by_link, key=abs)
    within = exact and abs(worst) <= AGREEMENT
    return Claim(
        "15,000 bytes cross at -3, 5 and 12 dB bit by bit, in the air time predicted within 10 %.",
        "",
        f"{'all exact' if exact else 'NOT exact'}; air time {100 * mean.value:+.1f} % on average, "
        f"{100 * worst:+.1f} % at the worst SNR",
        None if mean.interval is None else mean.scaled(100).interval,
        "reproduced" if within else "not met",
        tuple(sorted({r.job.seed for r in rows})),
        "5 MHz, no fading; predicted: mean of 200 runs of the table.",
    )


def _delivered_table(rows: Sequence[Row], label: str) -> Table:
    lines = []
    for snr_db in _snrs(rows):
        own = [r for r in rows if r.job.settings["snr_db"] == snr_db]
        promised, table, simulated = (mean.mean() for mean in _rates(own))
        first = sum(r.values["simulated"]["blocks"] for r in own)
        failed = sum(r.values["simulated"]["failed_first"] for r in own)
        lost = sum(r.values["simulated"]["lost"] for r in own)
        lines.append(
            (
                f"{snr_db:g}",
                f"{promised:.2f}",
                f"{table:.2f}",
                f"{simulated:.2f}",
                f"{simulated / promised:.0%}",
                f"{100 * (table / simulated - 1):+.1f} %",
                f"{failed / first:.1%}",
                f"{lost}",
            )
        )
    columns = (
        "mean SNR [dB]", "Shannon [Mbit/s]", "table [Mbit/s]", "simulated [Mbit/s]",
        "of Shannon's", "table against simulation", "first transmissions lost",
        "blocks that did not arrive",
    )  # fmt: skip
    note = (
        "5 MHz; Shannon's rate of the same slots' SNRs over the whole channel. A block still under "
        "way when the slots end counts as one that did not arrive."
    )
    return Table(f"Delivered: {label}", columns, tuple(lines), note)


def _rates(rows: Sequence[Row]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (rows,) rates [Mbit/s]: Shannon's over the same slots, table's and simulation's."""
    promised = [5.0 * Awgn().spectral_efficiency(np.array(r.values["snrs_db"])).mean()
                for r in rows]  # fmt: skip
    spans = [len(r.values["snrs_db"]) * r.values["slot_s"] for r in rows]
    sent = [[r.values[way]["bits"] / span / 1e6 for r, span in zip(rows, spans, strict=True)]
            for way in ("table", "simulated")]  # fmt: skip
    return np.array(promised), np.array(sent[0]), np.array(sent[1])


def _chart(rows: Sequence[Row], label: str) -> LineChart:
    snrs = _snrs(rows)
    rates = [_rates([r for r in rows if r.job.settings["snr_db"] == snr]) for snr in snrs]
    series = tuple(
        Series(name, snrs, [float(of_snr[k].mean()) for of_snr in rates])
        for k, name in enumerate(("Shannon", "table", "simulated"))
    )
    return LineChart(
        f"Promised and delivered, {label}", "mean Es/N0 [dB]", "Mbit/s", series, markers=True,
        note="5 MHz; simulated: mean over seeds.",
    )  # fmt: skip


def _adapter_table(rows: Sequence[Row]) -> Table:
    lines = []
    for snr_db in _snrs(rows):
        values = [r.values for r in rows if r.job.settings["snr_db"] == snr_db]
        mean = {key: float(np.mean([v[key] for v in values])) for key in
                ("air_time_s", "foretold_s", "shannon_s", "retransmissions")}  # fmt: skip
        lines.append(
            (
                f"{snr_db:g}",
                "yes" if all(v["exact"] for v in values) else "NO",
                f"{1e3 * mean['shannon_s']:.1f}",
                f"{1e3 * mean['foretold_s']:.1f}",
                f"{1e3 * mean['air_time_s']:.1f}",
                f"{mean['retransmissions']:.1f}",
            )
        )
    columns = ("SNR [dB]", "exact", "Shannon [ms]", "predicted [ms]", "simulated [ms]",
               "blocks sent again")  # fmt: skip
    return Table(
        "An adapter of 15,000 bytes over 5 MHz", columns, tuple(lines), "Means over seeds."
    )


def _combining_table(rows: Sequence[Row]) -> Table:
    lines = tuple(
        (
            f"MCS {r.job.settings['scheme']}",
            f"{r.values['1']['middle_db']:.2f} ± {1.96 * r.values['1']['se_db']:.2f}",
            f"{r.values['2']['middle_db']:.2f} ± {1.96 * r.values['2']['se_db']:.2f}",
            f"{r.values['combining_efficiency']:.2f}",
        )
        for r in rows
    )
    columns = ("scheme", "one transmission [dB]", "two [dB]",
               "second one's worth, share of the first's information")  # fmt: skip
    note = "SNR at which half of the blocks of 2,000 bits are lost; redundancy versions 0 and 2."
    return Table("Combining", columns, lines, note)


def _snrs(rows: Sequence[Row]) -> list[float]:
    return sorted({float(r.job.settings["snr_db"]) for r in rows})
