"""Links that adapters travel over, with the bytes that each carries in one delivery.

Radios are counted by Shannon's rate over their band (Eq. 5), but no faster than their fastest
scheme; services that carry messages by the message. Each entry says where its numbers come from.

The arithmetic says where it matters what is sent: where a link carries more than the whole coded
adapter, there is nothing to choose (docs/links.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.link.capacity import Awgn
from rankcast.records import FloatArray

SnrsDb = FloatArray | float | Sequence[float]


@dataclass(frozen=True)
class RadioLink:
    """A band that an adapter has to itself for a time.

    Attributes:
        what: for readers.
        source: of the numbers.
        bandwidth_hz: W.
        deadline_s: time of the delivery.
        fastest_bps: rate of the highest modulation and coding; infinite where none is assumed.
    """

    what: str
    source: str
    bandwidth_hz: float
    deadline_s: float = 1.0
    fastest_bps: float = np.inf

    def bytes_at(self, snr_db: SnrsDb) -> FloatArray:
        """Return the bytes that arrive in time at each SNR [dB], same shape."""
        shannon = self.bandwidth_hz * Awgn().spectral_efficiency(np.asarray(snr_db, np.float64))
        return np.minimum(shannon, self.fastest_bps) * self.deadline_s / 8


@dataclass(frozen=True)
class MessageLink:
    """A service that carries messages of a largest size, whatever the SNR.

    Attributes:
        what: for readers.
        source: of the numbers.
        message_bytes: payload of a message.
    """

    what: str
    source: str
    message_bytes: int

    def bytes_at(self, snr_db: SnrsDb) -> FloatArray:
        """Return the bytes of one message for each SNR [dB], same shape."""
        return np.full(np.shape(snr_db), float(self.message_bytes))


_LORAWAN = "LoRa Alliance RP002-1.0.4, EU863-870, no repeater"
KNOWN: Mapping[str, RadioLink | MessageLink] = {
    "lorawan-sf12": MessageLink("LoRaWAN, furthest (SF12), one message", _LORAWAN, 51),
    "lorawan-sf9": MessageLink("LoRaWAN, SF9, one message", _LORAWAN, 115),
    "lorawan-sf7": MessageLink("LoRaWAN, nearest (SF7), one message", _LORAWAN, 242),
    "iridium-sbd": MessageLink(
        "Iridium Short Burst Data to a device, one message", "modules 9602 and 9603", 270
    ),
    "10khz": RadioLink("10 kHz for a second", "a narrow channel without a standard", 10e3),
    "nb-iot": RadioLink(
        "NB-IoT for a second", "3GPP TS 36.211 (180 kHz), category NB2 (127 kbit/s)", 180e3,
        fastest_bps=127e3,
    ),
    "lte-m": RadioLink(
        "LTE-M for a second", "3GPP TS 36.211 (six resource blocks), category M1 (1 Mbit/s)",
        1.08e6, fastest_bps=1e6,
    ),
    "5g-5mhz": RadioLink("5 MHz of 5G for a second", "the demo of this project", 5e6),
    "paper": RadioLink("100 MHz for a second", "arXiv 2507.11515, Sec. V-A", 100e6),
}  # fmt: skip
"""By the name that commands take, the narrowest first."""
