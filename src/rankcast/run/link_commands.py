"""`rankcast link`: what a link carries by every rate model, and where blocks get lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rankcast.link.abstraction import NrLink, NrRate
from rankcast.link.capacity import RateModel
from rankcast.link.doppler import fitting_rate_reading
from rankcast.link.fading import coherence_time_s
from rankcast.link.nr import Carrier, McsTable
from rankcast.link.rate_models import parameters_of, rate_model
from rankcast.records import FloatArray, LinkState
from rankcast.run import air_options
from rankcast.run.link import LinkConfig

_SNR_DB = np.arange(-10.0, 25.01, 0.1)
_SHOWN = ("awgn", "rayleigh_ergodic", "rayleigh_outage", "truncated_shannon")


@dataclass(frozen=True, eq=False)
class LinkCurves:
    """What there is to draw.

    Attributes:
        bandwidth_hz: of the channel [Hz].
        snr_db: (S,) [dB].
        rates: (S,) of each rate model by its name [bit/s/Hz].
        nr: name of the NR model among them.
        block_error: (M, S) share of transport blocks lost at their first transmission.
    """

    bandwidth_hz: float
    snr_db: FloatArray
    rates: Mapping[str, FloatArray]
    nr: str
    block_error: FloatArray


def dispatch(command: air_options.Link) -> int:
    """Do what a command says and return the exit status."""
    match command.action:
        case air_options.LinkRates() as action:
            return _rates(action)
        case air_options.LinkCurves() as action:
            return _curves(action)


def link_curves(bandwidth_hz: float, table: McsTable, impl_loss_db: float = 0.0) -> LinkCurves:
    """Return the curves of a channel.

    Raises:
        LinkError: a bandwidth that NR cannot use.
    """
    link = NrLink(Carrier.for_bandwidth(bandwidth_hz), table, impl_loss_db)
    settings = LinkConfig(bandwidth_hz=bandwidth_hz)
    nr = f"nr_{table}"
    rates = {name: _model(name, settings).spectral_efficiency(_SNR_DB) for name in _SHOWN}
    rates[nr] = NrRate(link).spectral_efficiency(_SNR_DB)
    lost = np.stack([link.block_error(i, link.information(i, _SNR_DB))
                     for i in range(len(link.blocks))])  # fmt: skip
    return LinkCurves(bandwidth_hz, _SNR_DB, rates, nr, lost)


def _curves(command: air_options.LinkCurves) -> int:
    curves = link_curves(command.bandwidth_hz, command.table, command.impl_loss_db)
    if command.json:
        plain = {
            "bandwidth_hz": curves.bandwidth_hz,
            "snr_db": np.round(curves.snr_db, 3).tolist(),
            "bit_per_s_per_hz": {name: rate.tolist() for name, rate in curves.rates.items()},
            "block_error": curves.block_error.tolist(),
        }
        print(json.dumps(plain))  # noqa: T201
        return 0
    from rankcast.run.pictures import draw_link_curves  # noqa: PLC0415 needs matplotlib

    draw_link_curves(command.output, curves)
    between = (curves.snr_db >= -5.0) & (curves.snr_db <= 15.0)
    share = curves.rates[curves.nr][between].mean() / curves.rates["awgn"][between].mean()
    efficiency = Carrier.for_bandwidth(command.bandwidth_hz).efficiency
    print(  # noqa: T201
        f"{command.output}: between -5 and 15 dB 5G NR gets {share:.0%} of Shannon's rate through, "
        f"{share / efficiency:.0%} of it per resource element that carries data."
    )
    return 0


def _rates(command: air_options.LinkRates) -> int:
    settings = LinkConfig(
        bandwidth_hz=command.bandwidth_hz, deadline_s=command.deadline_s,
        impl_loss_db=command.impl_loss_db,
    )  # fmt: skip
    link = LinkState(np.array([command.snr_db]), np.array([command.bandwidth_hz]), np.array([1.0]))
    found = {}
    for name in (*_SHOWN, "nr_64qam", "nr_256qam"):
        rate = float(_model(name, settings).spectral_efficiency(link.snr_db)[0])
        found[name] = rate * command.bandwidth_hz
    coherence_s = coherence_time_s(command.speed_m_s, command.carrier_hz)
    reading = fitting_rate_reading(command.speed_m_s, command.carrier_hz, command.deadline_s)
    if command.json:
        plain = {"rate_bps": found, "coherence_time_s": coherence_s, "reading": reading}
        print(json.dumps(plain, indent=2))  # noqa: T201
        return 0
    table = Table(box=box.SIMPLE)
    for column in ("rate model", "Mbit/s", f"kB in {command.deadline_s:g} s"):
        table.add_column(column, justify="left" if column == "rate model" else "right")
    for name, rate_bps in found.items():
        kilobytes = rate_bps * command.deadline_s / 8e3
        table.add_row(name, f"{rate_bps / 1e6:,.3f}", f"{kilobytes:,.1f}")
    console = Console(highlight=False)
    console.print(table)
    fits = {"ergodic": "its average (an ergodic model)", "instantaneous": "its value now (awgn)"}
    console.print(
        f"At {command.speed_m_s:g} m/s fading keeps its value for {1e3 * coherence_s:,.1f} ms: for "
        f"a transfer of {command.deadline_s:g} s reckon with {fits[reading]}."
    )
    return 0


def _model(name: str, settings: LinkConfig) -> RateModel:
    return rate_model(name, **{key: getattr(settings, key) for key in parameters_of(name)})
