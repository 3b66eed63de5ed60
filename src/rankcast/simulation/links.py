"""The links of all devices: an SNR process around a mean of each device's own, or a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rankcast.config.link import LinkConfig
from rankcast.edge.advice import RadioLink
from rankcast.errors import ConfigError
from rankcast.link.build import snr_process
from rankcast.link.rate_models import parameters_of, rate_model_of
from rankcast.records import FloatArray
from rankcast.simulation.releases import OVERHEAD_BYTES
from rankcast.simulation.shaping import RateSchedule

_COMMON = ("iid", "trace")
"""Processes whose values are not moved by a mean of each device's own."""


@dataclass(frozen=True, eq=False)
class Links:
    """The links of all devices.

    Attributes:
        rates_bps: (T, N) rate of every device in every step [bit/s].
        step_s: length of a step [s].
        bandwidth_hz: of each device [Hz].
        snr_db: (T, N) SNR [dB]; None where only throughput is known.
        radio: what a modem reports at an SNR; None to let devices measure.
    """

    rates_bps: FloatArray
    step_s: float
    bandwidth_hz: float
    snr_db: FloatArray | None = None
    radio: Callable[[float], RadioLink] | None = None

    @property
    def n_devices(self) -> int:
        """N."""
        return self.rates_bps.shape[1]

    @property
    def median_bps(self) -> float:
        """Median over devices of their mean rate [bit/s]."""
        return float(np.median(self.rates_bps.mean(axis=0)))

    def schedules(self) -> list[RateSchedule]:
        """Return the rate of each device over time.

        Raises:
            LinkError: a link that never carries anything.
        """
        return [RateSchedule(rates, self.step_s) for rates in self.rates_bps.T]


def simulated_links(
    link: LinkConfig,
    rng: np.random.Generator,
    *,
    n_devices: int,
    duration_s: float,
    step_s: float,
    snr_range_db: tuple[float, float],
    bandwidth_hz: float | None,
    adapter_bytes: int,
    radio: bool = False,
) -> Links:
    """Return the links of all devices.

    Args:
        link: process and rate model; a process that has a mean has it at 0 dB.
        rng: draws the process.
        n_devices: N.
        duration_s: for how long rates are drawn [s].
        step_s: after which they change [s].
        snr_range_db: mean SNR of the worst device and of the best [dB].
        bandwidth_hz: of each device [Hz]; None for the one in which the median link just carries
            the adapter within the deadline.
        adapter_bytes: of that adapter.
        radio: whether modems report the SNR.

    Raises:
        ConfigError: a rate model that needs a bandwidth, or a modem without SNR.
        LinkError: an impossible link.
    """
    measured = link.process == "trace" and link.trace.kind == "throughput"
    if bandwidth_hz is None and "bandwidth_hz" in parameters_of(link.rate_model):
        raise ConfigError(f"The rate model {link.rate_model} needs a --bandwidth-hz.")
    if radio and measured:
        raise ConfigError("A trace of throughput has no SNR that a modem could report: no --radio.")
    snr_db = _drawn_snr_db(link, rng, n_devices, max(1, int(np.ceil(duration_s / step_s))))
    if link.process not in _COMMON:
        snr_db = snr_db + np.linspace(*snr_range_db, n_devices)
    efficiency = rate_model_of(link).spectral_efficiency(snr_db)
    if bandwidth_hz is None and not measured:
        median = float(np.median(efficiency.mean(axis=0)))
        bandwidth_hz = 8 * (adapter_bytes + OVERHEAD_BYTES) / (median * link.deadline_s)
    width_hz = link.bandwidth_hz if bandwidth_hz is None else bandwidth_hz
    return Links(
        efficiency * width_hz,
        step_s,
        width_hz,
        None if measured else snr_db,
        (lambda db: RadioLink(db, width_hz, link.rate_model)) if radio else None,
    )


def _drawn_snr_db(
    link: LinkConfig, rng: np.random.Generator, n_devices: int, n_steps: int
) -> FloatArray:
    """Return (T, N) SNR [dB]."""
    process = snr_process(link)
    state = process.start(rng, n_devices)
    rows = [state.snr_db]
    for _ in range(n_steps - 1):
        state = process.advance(state, rng)
        rows.append(state.snr_db)
    return np.stack(rows)
