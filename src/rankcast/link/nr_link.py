"""5G NR as a table: the rate of a link at an SNR, without simulating symbols.

Whether a block arrives follows from the waterfalls of `rankcast.link.bler`. Transmissions of a
block that are combined add up in mutual information, each further one worth
`combining_efficiency` of the first: incremental redundancy is worth more than adding up energy
(Chase combining) and less than new code bits would be to an ideal code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rankcast.errors import ConfigError
from rankcast.link.bler import BlerTable, Waterfall, effective_snr_db, mutual_information, nr_bler
from rankcast.link.capacity import checked_snr_db, scipy
from rankcast.link.nr import Carrier, McsTable, TransportBlock, mcs_table, transport_block
from rankcast.records import FloatArray, IntArray

_GRID_DB = np.arange(-25.0, 45.0, 0.05)
_LEAST = 1e-6  # bit/s/Hz; keeps times finite where nothing gets through


@dataclass(frozen=True)
class NrLink:
    """Transport blocks of one carrier and the share of them that is lost.

    Attributes:
        carrier: resources of every slot.
        table: modulation and coding schemes.
        impl_loss_db: how much more SNR a real receiver needs than the ideal one [dB].
        max_transmissions: of a block; the first included.
        combining_efficiency: what a further transmission adds, as a share of the first one's
            mutual information.
        bler: waterfalls.

    Raises:
        ConfigError: unknown table, no transmission, or an efficiency outside [0, 1].
    """

    carrier: Carrier
    table: McsTable = "64qam"
    impl_loss_db: float = 0.0
    max_transmissions: int = 4
    combining_efficiency: float = 0.8
    bler: BlerTable = field(default_factory=nr_bler, repr=False)

    def __post_init__(self) -> None:
        """Check table, transmissions and efficiencies."""
        mcs_table(self.table)
        if self.max_transmissions < 1 or not 0.0 <= self.combining_efficiency <= 1.0:
            raise ConfigError(
                f"A block needs at least one transmission and an efficiency in [0, 1], got "
                f"{self.max_transmissions} and {self.combining_efficiency}."
            )
        if not np.isfinite(self.impl_loss_db):
            raise ConfigError(f"impl_loss_db must be a finite number, got {self.impl_loss_db}.")

    @cached_property
    def blocks(self) -> tuple[TransportBlock, ...]:
        """The transport block of each scheme, in the order of their indices."""
        return tuple(transport_block(mcs, self.carrier) for mcs in mcs_table(self.table))

    def block_error(self, index: int, information: FloatArray) -> FloatArray:
        """Return the probability that a transport block cannot be decoded, same shape.

        Args:
            index: of the scheme.
            information: mutual information received so far [bit per symbol]; see `information`.
        """
        block = self.blocks[index]
        snr_db = effective_snr_db(block.mcs.bits_per_symbol, information)
        middle_db, width_db = (values[index] for values in self._middle_and_width_db)
        each = scipy("special").ndtr((middle_db - snr_db) / width_db)
        return -np.expm1(block.n_code_blocks * np.log1p(-np.minimum(each, 1.0 - 1e-12)))

    def thresholds_db(self, target: float) -> FloatArray:
        """Return (M,) SNR [dB] at which each scheme's first transmission is lost so often.

        Args:
            target: probability of a loss, in (0, 1).
        """
        each = -np.expm1(np.log1p(-target) / self._n_code_blocks)
        middle_db, width_db = self._middle_and_width_db
        return middle_db - width_db * scipy("special").ndtri(each) + self.impl_loss_db

    @cached_property
    def payload_bits(self) -> IntArray:
        """(M,) payload of a block of each scheme [bit]."""
        return np.array([block.payload_bits for block in self.blocks])

    @cached_property
    def _n_code_blocks(self) -> IntArray:
        return np.array([block.n_code_blocks for block in self.blocks])

    def waterfall(self, index: int) -> Waterfall:
        """Return the waterfall of a scheme's code blocks on this carrier; no implementation loss.

        Simulated blocks have the table's code rate; here checksums and whole bytes make it a little
        higher or lower, which moves them as far as Shannon's limit moves.
        """
        block = self.blocks[index]
        curve = self.bler.waterfall(block.mcs, block.code_block_bits)
        rate = block.n_code_blocks * block.code_block_bits / block.coded_bits
        here, there = (2.0 ** (block.mcs.bits_per_symbol * r) - 1.0
                       for r in (rate, block.mcs.code_rate))  # fmt: skip
        moved_db = 10.0 * math.log10(here / there)
        return replace(curve, middle_db=curve.middle_db + moved_db)

    @cached_property
    def _middle_and_width_db(self) -> tuple[FloatArray, FloatArray]:
        curves = [self.waterfall(i) for i in range(len(self.blocks))]
        return np.array([c.middle_db for c in curves]), np.array([c.width_db for c in curves])

    def information(self, index: int, snr_db: FloatArray, transmission: int = 0) -> FloatArray:
        """Return what one transmission adds [bit per symbol], same shape as the SNR [dB].

        Args:
            index: of the scheme.
            snr_db: Es/N0.
            transmission: 0 for the first.
        """
        order = self.blocks[index].mcs.bits_per_symbol
        first = mutual_information(order, np.asarray(snr_db) - self.impl_loss_db)
        return first if transmission == 0 else self.combining_efficiency * first

    def still_lost(self, snr_db: FloatArray) -> FloatArray:
        """Return (..., M, J) probability that a block is lost after 1 to J transmissions.

        Args:
            snr_db: (...) the same SNR for all of them [dB].
        """
        snr_db = np.asarray(snr_db, dtype=np.float64)
        shape = (len(self.blocks), self.max_transmissions)
        lost = np.empty((*snr_db.shape, *shape))
        for i in range(shape[0]):
            one = self.information(i, snr_db)
            for j in range(shape[1]):
                lost[..., i, j] = self.block_error(i, one * (1 + j * self.combining_efficiency))
        return lost

    def goodput(self, snr_db: FloatArray) -> FloatArray:
        """Return (..., M) what each scheme gets through [bit/s/Hz], retransmissions paid for."""
        lost = self.still_lost(snr_db)
        sent = 1.0 + lost[..., :-1].sum(axis=-1)
        per_slot = self.payload_bits * (1.0 - lost[..., -1]) / sent
        return per_slot / self.carrier.slot_s / self.carrier.bandwidth_hz


@dataclass(frozen=True)
class NrRate:
    """The goodput of the best scheme, as a `RateModel`.

    Attributes:
        link: carrier and schemes. The rate is per hertz of this carrier's channel; a `LinkState` of
            another bandwidth is taken to be as efficient.
    """

    link: NrLink

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        """Return the goodput of the best scheme [bit/s/Hz], same shape.

        Raises:
            LinkError: NaN, infinite or absurdly large SNR.
        """
        return np.maximum(np.interp(checked_snr_db(snr_db), _GRID_DB, self._best), _LEAST)

    @cached_property
    def _best(self) -> FloatArray:
        return self.link.goodput(_GRID_DB).max(axis=-1)


@dataclass(frozen=True, slots=True)
class OuterLoop:
    """Outer-loop link adaptation: a margin that lets a target share of first transmissions fail.

    A block that arrives lowers the margin by step·t / (1 - t), one that does not raises it by the
    step, so that the margin rests where a share t fails (K. I. Pedersen et al., Frequency domain
    scheduling for OFDMA with limited and noisy channel feedback, VTC 2007).

    Attributes:
        target: t in (0, 1).
        step_db: of the margin [dB].
        margin_db: taken off the reported SNR now [dB].
        limit_db: furthest that the margin goes either way [dB]; else a long time at an SNR above
            the fastest scheme's would have to be unlearned.
    """

    target: float = 0.1
    step_db: float = 0.5
    margin_db: float = 0.0
    limit_db: float = 10.0

    def __post_init__(self) -> None:
        """Check target and step."""
        if not 0.0 < self.target < 1.0 or not self.step_db >= 0.0:
            raise ConfigError(
                f"An outer loop needs a target in (0, 1) and a step of at least 0 dB, got "
                f"{self.target} and {self.step_db}."
            )

    def after(self, *, arrived: bool) -> OuterLoop:
        """Return the loop after a first transmission."""
        down = self.step_db * self.target / (1.0 - self.target)
        margin_db = self.margin_db - down if arrived else self.margin_db + self.step_db
        margin_db = min(max(margin_db, -self.limit_db), self.limit_db)
        return replace(self, margin_db=margin_db)

    def scheme(self, link: NrLink, snr_db: float) -> int:
        """Return the fastest scheme that should lose at most the target at the reported SNR [dB].

        The lowest one where none does.
        """
        fits = link.thresholds_db(self.target) <= snr_db - self.margin_db
        return int(np.argmax(np.where(fits, link.payload_bits, 0)))
