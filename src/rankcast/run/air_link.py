"""The link that the options of `rankcast send` describe."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import numpy as np

from rankcast.errors import ConfigError
from rankcast.link.abstraction import NrLink
from rankcast.link.capacity import Awgn
from rankcast.link.doppler import JakesSnr
from rankcast.link.slots import slots
from rankcast.link.trace_files import read_csv
from rankcast.link.transport import AbstractChannel, BlockChannel
from rankcast.run.air_options import Send


def channel_of(command: Send, link: NrLink) -> BlockChannel:
    """Return what carries the blocks.

    Raises:
        ConfigError: a delay profile with the table, or no Sionna.
    """
    if command.link == "table":
        if command.delay_profile != "flat":
            raise ConfigError("A delay profile needs --link nr: the table knows one SNR a slot.")
        return AbstractChannel(link)
    from rankcast.phy.channel import SimulatedChannel, best_device  # noqa: PLC0415 needs Sionna

    device = best_device()
    if command.delay_profile == "flat":
        return SimulatedChannel(link, device=device)
    from rankcast.phy.fading import tapped_delay_line  # noqa: PLC0415

    gains = tapped_delay_line(
        {"tdl-a": "A", "tdl-c": "C", "tdl-d": "D"}[command.delay_profile],  # pyright: ignore[reportArgumentType]
        link.carrier,
        delay_spread_s=command.delay_spread_s,
        carrier_hz=command.carrier_hz,
        speed_m_s=command.speed_m_s,
        device=device,
    )
    return SimulatedChannel(link, gains, device=device)


def check_snr(command: Send) -> None:
    """Refuse a transfer at no SNR, or at two.

    Raises:
        ConfigError: neither --snr-db nor --trace, or both, or a trace that fades once more.
    """
    if (command.snr_db is None) == (command.trace is None):
        raise ConfigError("Give the link's --snr-db, or a --trace of it.")
    if command.trace is not None and command.fading != "none":
        raise ConfigError("A measured trace has its fading in it: leave out --fading.")


def snrs_db(command: Send, link: NrLink, rng: np.random.Generator) -> Iterable[float]:
    """Return the SNR of one slot after another [dB]."""
    if command.snr_db is None:
        return _measured_db(command, link)
    if command.fading == "none":
        return repeat(command.snr_db)
    k_factor = command.k_factor if command.fading == "rician" else 0.0
    process = JakesSnr(
        command.snr_db, command.speed_m_s, command.carrier_hz, link.carrier.slot_s, k_factor
    )
    return slots(process, rng)


def _measured_db(command: Send, link: NrLink) -> list[float]:
    """Return the SNR of every slot of a trace [dB]."""
    assert command.trace is not None
    trace = read_csv(
        command.trace, "snr", command.time_column, command.value_column,
        time_format=command.time_format,
    )  # fmt: skip
    return trace.sampled(link.carrier.slot_s).tolist()


def shannon_efficiency(command: Send, link: NrLink) -> float:
    """Return Shannon's rate without fading, of a trace on average [bit/s/Hz]."""
    known = command.snr_db is None
    snrs_db = _measured_db(command, link) if known else [command.snr_db or 0.0]
    return float(Awgn().spectral_efficiency(np.array(snrs_db)).mean())
