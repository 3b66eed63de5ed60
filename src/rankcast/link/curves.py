"""Compare rate models: what each makes of an SNR, and where 5G NR loses its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rankcast.config.link import LinkConfig, RateConfig, RateModelName
from rankcast.link.nr import Carrier, McsTable
from rankcast.link.nr_link import NrLink
from rankcast.link.rate_models import rate_model_of
from rankcast.records import FloatArray

SHOWN: tuple[RateModelName, ...] = (
    "awgn",
    "rayleigh_ergodic",
    "rayleigh_outage",
    "truncated_shannon",
)
"""Models of Shannon's that are compared with those of 5G NR."""
_SNR_DB = np.arange(-10.0, 25.01, 0.1)


@dataclass(frozen=True, eq=False)
class LinkCurves:
    """Curves of one channel.

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

    @property
    def share_of_shannon(self) -> float:
        """Mean rate of NR between -5 and 15 dB, as a share of Shannon's."""
        between = (self.snr_db >= -5.0) & (self.snr_db <= 15.0)
        return float(self.rates[self.nr][between].mean() / self.rates["awgn"][between].mean())


def efficiencies(
    names: tuple[RateModelName, ...],
    snr_db: FloatArray,
    bandwidth_hz: float,
    impl_loss_db: float = 0.0,
) -> dict[str, FloatArray]:
    """Return the rate of each model at each SNR [bit/s/Hz].

    Args:
        names: of rate models, whose other parameters are the defaults.
        snr_db: any shape [dB].
        bandwidth_hz: of the channel [Hz].
        impl_loss_db: SNR that a receiver of 5G NR loses [dB].

    Raises:
        LinkError: a bandwidth that NR cannot use, or an SNR that is no number.
    """
    rate = RateConfig(impl_loss_db=impl_loss_db)
    links = {
        name: LinkConfig(rate_model=name, bandwidth_hz=bandwidth_hz, rate=rate) for name in names
    }
    return {name: rate_model_of(link).spectral_efficiency(snr_db) for name, link in links.items()}


def link_curves(bandwidth_hz: float, table: McsTable, impl_loss_db: float = 0.0) -> LinkCurves:
    """Return the curves of a channel.

    Args:
        bandwidth_hz: of the channel [Hz].
        table: modulation and coding schemes.
        impl_loss_db: SNR that a receiver loses [dB].

    Raises:
        LinkError: a bandwidth that NR cannot use.
    """
    nr: RateModelName = "nr_64qam" if table == "64qam" else "nr_256qam"
    rates = efficiencies((*SHOWN, nr), _SNR_DB, bandwidth_hz, impl_loss_db)
    link = NrLink(Carrier.for_bandwidth(bandwidth_hz), table, impl_loss_db)
    lost = [link.block_error(i, link.information(i, _SNR_DB)) for i in range(len(link.blocks))]
    return LinkCurves(bandwidth_hz, _SNR_DB, rates, nr, np.stack(lost))
