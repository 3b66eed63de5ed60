"""Build what a link is made of from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rankcast.config.link import JakesConfig, LinkConfig, TraceConfig
from rankcast.errors import LinkError, check_choice
from rankcast.link.jakes import JakesSnr
from rankcast.link.path import PathSnr
from rankcast.link.processes import (
    BlockFadingSnr,
    GaussMarkovSnr,
    IidSnr,
    SnrProcess,
    StaticSnr,
    SummedSnr,
    shadowing_correlation,
)
from rankcast.link.rate_models import fading_of
from rankcast.link.replay import ReplayedSnr
from rankcast.link.traces import Trace, read_csv, read_mahimahi, read_throughput_rows
from rankcast.records import LinkState


def snr_process(link: LinkConfig) -> SnrProcess:
    """Return how SNR changes on a configured link.

    Raises:
        LinkError: a process that cannot be; a trace that cannot be read or replayed.
    """
    match link.process:
        case "iid":
            process = IidSnr(link.iid.values_db)
        case "static":
            process = StaticSnr(link.static.snr_db)
        case "block":
            block = link.block
            fading = fading_of(block.fading, vars(block))
            process = BlockFadingSnr(block.snr_db, fading, block.length)
        case "gauss-markov":
            slow = link.gauss_markov
            process = GaussMarkovSnr(slow.snr_db, slow.std_db, slow.correlation)
        case "jakes":
            process = _jakes(link.jakes)
        case "path":
            path = link.path
            process = PathSnr(
                path.waypoints_m, path.speed_m_s, path.step_s, path.snr_db, path.exponent,
                path.std_db, path.decorrelation_m,
            )  # fmt: skip
        case "trace":
            process = _replayed(link)
    return process


def expected_db(process: SnrProcess, link: LinkConfig) -> tuple[float, ...]:
    """Return the SNRs to expect [dB]: what is drawn from, quartiles of a trace, else the mean."""
    match process:
        case IidSnr(values_db):
            return values_db
        case ReplayedSnr() as replayed:
            quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
            return tuple(np.quantile(replayed.values_db, quarters, method="nearest").tolist())
        case PathSnr() as path:
            return (path.mean_snr_db,)
        case _:
            return (getattr(link, link.process.replace("-", "_")).snr_db,)


def reference_db(process: SnrProcess, link: LinkConfig) -> float:
    """Return the SNR at which progress is judged: the middle of the expected ones [dB]."""
    expected = sorted(expected_db(process, link))
    return expected[len(expected) // 2]


def link_states(link: LinkConfig, snr_db: Sequence[float]) -> LinkState:
    """Return one link for each SNR [dB], with the configured bandwidth and deadline.

    Raises:
        LinkError: no SNR, one that is not finite; bandwidth or deadline not positive and finite.
    """
    size = len(snr_db)
    return LinkState(
        np.array(snr_db, dtype=np.float64),
        np.full(size, link.bandwidth_hz),
        np.full(size, link.deadline_s),
    )


def _jakes(jakes: JakesConfig) -> SnrProcess:
    """Return fast fading on shadowing."""
    check_choice("fading of the process jakes", jakes.fading, ("rayleigh", "rician"))
    k_factor = jakes.k_factor if jakes.fading == "rician" else 0.0
    correlation = shadowing_correlation(jakes.speed_m_s, jakes.step_s, jakes.decorrelation_m)
    shadowing = GaussMarkovSnr(jakes.snr_db, jakes.std_db, correlation)
    fast = JakesSnr(0.0, jakes.speed_m_s, jakes.carrier_hz, jakes.step_s, k_factor)
    return SummedSnr((shadowing, fast))


def _replayed(link: LinkConfig) -> ReplayedSnr:
    settings, trace = link.trace, _trace(link.trace)
    if settings.kind == "snr":
        return ReplayedSnr.of_snr(trace, settings.step_s, settings.max_gap_s)
    if link.rate_model != "awgn":
        raise LinkError(
            f"A trace of throughput says what the link carried, fading included: "
            f"link.rate_model must be awgn, not {link.rate_model}."
        )
    return ReplayedSnr.of_throughput(trace, settings.step_s, link.bandwidth_hz, settings.max_gap_s)


def _trace(settings: TraceConfig) -> Trace:
    if not settings.file:
        raise LinkError("The process trace needs a file: set link.trace.file.")
    path = Path(settings.file).expanduser()
    if settings.format == "csv":
        return read_csv(
            path,
            settings.kind,
            settings.time_column,
            settings.value_column,
            scale=settings.value_scale,
            time_format=settings.time_format or None,
        )
    if settings.kind == "snr":
        raise LinkError(
            f"Traces of the format {settings.format} hold throughput, from which no SNR "
            f"follows: set link.trace.kind to throughput."
        )
    return read_throughput_rows(path) if settings.format == "rows" else read_mahimahi(path)
