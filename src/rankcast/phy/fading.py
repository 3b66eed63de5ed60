"""Fading inside a slot: tapped delay lines of 3GPP TR 38.901, through Sionna."""

from __future__ import annotations

from typing import Literal

import torch
from sionna.phy import config
from sionna.phy.channel import cir_to_ofdm_channel, subcarrier_frequencies
from sionna.phy.channel.tr38901 import TDL

from rankcast.errors import LinkError
from rankcast.link.nr import SUBCARRIERS, SYMBOLS, Carrier
from rankcast.phy.channel import Gains

TdlModel = Literal["A", "B", "C", "D", "E"]
"""TR 38.901, tables 7.7.2-1 to -5: A to C without line of sight, D and E with."""


def tapped_delay_line(
    model: TdlModel,
    carrier: Carrier,
    *,
    delay_spread_s: float,
    carrier_hz: float,
    speed_m_s: float,
    device: str = "cpu",
) -> Gains:
    """Return the gains of a tapped delay line at the data symbols of a slot.

    Every slot is a new realisation; what fades more slowly belongs into the SNR of the slots. The
    first symbols of a slot are those that carry no data.

    Args:
        model: which taps.
        carrier: its resource elements.
        delay_spread_s: root mean square [s]; 30e-9 is short, 300e-9 long in TR 38.901.
        carrier_hz: carrier frequency [Hz].
        speed_m_s: of the device [m/s].
        device: of the tensors.

    Raises:
        LinkError: a model that does not exist, or a negative spread or speed.
    """
    if model not in ("A", "B", "C", "D", "E") or delay_spread_s < 0 or speed_m_s < 0:
        raise LinkError(
            f"A tapped delay line is A to E with a delay spread and speed of at least 0, got "
            f"{model}, {delay_spread_s} s and {speed_m_s} m/s."
        )
    line = TDL(model, delay_spread_s, carrier_hz, min_speed=speed_m_s, device=device)
    n_subcarriers = carrier.n_prb * SUBCARRIERS
    frequencies = subcarrier_frequencies(n_subcarriers, carrier.subcarrier_hz, device=device)

    def gains(n_symbols: int, generator: torch.Generator) -> torch.Tensor:
        # Sionna draws from generators of its own, which have no other seed than this one.
        config.seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        taps, delays = line(1, SYMBOLS, SYMBOLS / carrier.slot_s)
        response = cir_to_ofdm_channel(frequencies, taps, delays)[0, 0, 0, 0, 0]
        return response[carrier.control_symbols :].reshape(-1)[:n_symbols]

    return gains
