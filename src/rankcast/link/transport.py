"""Send bytes over a link, block by block.

Every channel gives the same `Delivery`, whether blocks are lost by chance (`AbstractChannel`) or
because noise was too strong for a decoder (`rankcast.phy.channel`). The
sender picks a scheme from the last reported SNR, sends one transport block per slot, and repeats
it with other redundancy until it arrives or has been sent often enough. Round trips are hidden
behind other blocks (several HARQ processes), so that a slot is all that a transmission costs.

Nothing after a lost block is of use to a receiver that needs a prefix, so that sending stops
there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from rankcast.errors import ConfigError, LinkError
from rankcast.link.nr_link import NrLink, OuterLoop
from rankcast.link.processes import SnrProcess, check_finite
from rankcast.records import FloatArray


class Reports:
    """The slots that are left, and the SNR that the sender knows.

    Args:
        snr_db: of one slot after another [dB].
        delay: age of the SNR that the sender knows, in slots.
        n_slots: slots in all; None for as many as there are SNRs.
    """

    def __init__(self, snr_db: Iterable[float], delay: int, n_slots: int | None) -> None:
        self._left = islice(snr_db, n_slots)
        self._recent: deque[float] = deque(maxlen=delay + 1)  # up to the next slot
        self.used = 0
        self._n_seen = 0

    def report(self) -> float | None:
        """Return the last SNR that the sender was told, or None when no slot is left."""
        return self._recent[0] if self._has_next() else None

    def slot(self) -> float | None:
        """Use the next slot and return its SNR, or None when no slot is left."""
        if not self._has_next():
            return None
        self.used += 1
        return self._recent[-1]

    def _has_next(self) -> bool:
        """Look at the next slot, unless that has been done."""
        if self.used == self._n_seen and (snr_db := next(self._left, None)) is not None:
            check_finite("SNR", snr_db)
            self._recent.append(snr_db)
            self._n_seen += 1
        return self.used < self._n_seen


def slots(process: SnrProcess, rng: np.random.Generator) -> Iterator[float]:
    """Yield the SNR [dB] of one slot after another; the process's step is a slot."""
    state = process.start(rng, 1)
    while True:
        yield float(state.snr_db[0])
        state = process.advance(state, rng)


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One transport block.

    Attributes:
        scheme: index in the MCS table.
        payload_bits: of the data, padding left out.
        snr_db: of each transmission [dB].
        arrived: whether it was decoded in the end.
    """

    scheme: int
    payload_bits: int
    snr_db: tuple[float, ...]
    arrived: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """A transfer: what was sent, what arrived, and how long it took.

    Attributes:
        received: bytes that arrived before the first loss, or the deadline.
        sent_bytes: that were to be sent.
        air_time_s: taken [s].
        blocks: in the order in which they were sent.
    """

    received: bytes
    sent_bytes: int
    air_time_s: float
    blocks: tuple[BlockReport, ...] = field(repr=False, default=())

    @property
    def complete(self) -> bool:
        """Whether everything arrived."""
        return len(self.received) == self.sent_bytes

    @property
    def n_transmissions(self) -> int:
        """Blocks on the air, repetitions included."""
        return sum(len(block.snr_db) for block in self.blocks)

    @property
    def n_retransmissions(self) -> int:
        """Transmissions beyond the first of each block."""
        return self.n_transmissions - len(self.blocks)

    @property
    def throughput_bps(self) -> float:
        """Bits received per second on the air; 0 where there was none [bit/s]."""
        return 8 * len(self.received) / self.air_time_s if self.air_time_s > 0 else 0.0


@runtime_checkable
class Attempt(Protocol):
    """A transport block under way."""

    def transmit(self, snr_db: float) -> bytes | None:
        """Send it once more at Es/N0 [dB]; return its payload once it can be decoded."""
        ...


@runtime_checkable
class BlockChannel(Protocol):
    """Carries transport blocks, or loses them."""

    def begin(self, scheme: int, payload: bytes, rng: np.random.Generator) -> Attempt:
        """Return a block to be transmitted.

        Args:
            scheme: index in the MCS table of the channel's link.
            payload: exactly the transport block's size.
            rng: of everything random about it.
        """
        ...


@dataclass(frozen=True)
class AbstractChannel:
    """Blocks that arrive when what they have accumulated suffices, by the waterfalls of `NrLink`.

    One uniform number per block decides against the probability that it is still lost, which
    falls with every transmission.

    Attributes:
        link: waterfalls and combining.
    """

    link: NrLink

    def begin(self, scheme: int, payload: bytes, rng: np.random.Generator) -> Attempt:
        """Return a block whose loss is decided by one uniform number."""
        return _AbstractAttempt(self.link, scheme, payload, float(rng.uniform()))


@dataclass
class _AbstractAttempt:
    link: NrLink
    scheme: int
    payload: bytes
    luck: float
    information: float = 0.0
    transmissions: int = 0

    def transmit(self, snr_db: float) -> bytes | None:
        self.information += float(
            self.link.information(self.scheme, np.array(snr_db), self.transmissions)
        )
        self.transmissions += 1
        lost = float(self.link.block_error(self.scheme, np.array(self.information)))
        return self.payload if self.luck >= lost else None


@dataclass(frozen=True)
class Sender:
    """How bytes become blocks.

    Attributes:
        link: carrier, schemes and the limit of transmissions.
        adaptation: where the outer loop begins.
        report_delay_slots: age of the SNR that the sender knows.

    Raises:
        ConfigError: a report from the future.
    """

    link: NrLink
    adaptation: OuterLoop = field(default_factory=OuterLoop)
    report_delay_slots: int = 0

    def __post_init__(self) -> None:
        """Refuse a report from the future."""
        if self.report_delay_slots < 0:
            raise ConfigError(
                f"Reports are 0 or more slots old, got {self.report_delay_slots} slots."
            )

    def send(
        self,
        data: bytes,
        snr_db: Iterable[float],
        channel: BlockChannel,
        rng: np.random.Generator,
        *,
        deadline_s: float = math.inf,
        progress: Callable[[int, BlockReport], None] = lambda _received, _block: None,
    ) -> Delivery:
        """Send bytes until they have arrived, one block is lost, or time is up.

        Args:
            data: to be sent.
            snr_db: Es/N0 of one slot after another [dB]; see `slots`. If it ends, so does sending.
            channel: what carries the blocks.
            rng: of everything random.
            deadline_s: slots that end later are not used [s].
            progress: called after each block with the bytes received so far.

        Raises:
            LinkError: a deadline that is not positive, or an SNR that is no finite number of dB.
        """
        if not deadline_s > 0:
            raise LinkError(f"The deadline must be positive, got {deadline_s} s.")
        slot_s = self.link.carrier.slot_s
        n_slots = None if math.isinf(deadline_s) else math.floor(deadline_s / slot_s + 1e-9)
        known = Reports(snr_db, self.report_delay_slots, n_slots)
        received, blocks, loop = bytearray(), [], self.adaptation
        while len(received) < len(data) and (reported := known.report()) is not None:
            scheme = loop.scheme(self.link, reported)
            size = self.link.blocks[scheme].payload_bits // 8
            part = data[len(received) : len(received) + size]
            attempt = channel.begin(scheme, part.ljust(size, b"\0"), rng)
            snrs, got = self._deliver(attempt, known)
            if not snrs:
                break
            loop = loop.after(arrived=len(snrs) == 1 and got is not None)
            blocks.append(BlockReport(scheme, 8 * len(part), snrs, got is not None))
            if got is not None:
                received += got[: len(part)]
            progress(len(received), blocks[-1])
            if got is None:
                break
        return Delivery(bytes(received), len(data), known.used * slot_s, tuple(blocks))

    def _deliver(self, attempt: Attempt, known: Reports) -> tuple[tuple[float, ...], bytes | None]:
        """Transmit a block until it arrives or has been sent often enough."""
        snrs: list[float] = []
        while len(snrs) < self.link.max_transmissions and (now := known.slot()) is not None:
            snrs.append(now)
            got = attempt.transmit(now)
            if got is not None:
                return tuple(snrs), got
        return tuple(snrs), None


def air_times_s(
    sender: Sender,
    n_bytes: int,
    snr_db: Callable[[], Iterable[float]],
    rng: np.random.Generator,
    n_runs: int = 200,
) -> FloatArray:
    """Return (n_runs,) air times that the table predicts [s]; NaN where a block is lost."""
    channel, times_s = AbstractChannel(sender.link), np.full(n_runs, np.nan)
    for run in range(n_runs):
        delivery = sender.send(bytes(n_bytes), snr_db(), channel, rng)
        if delivery.complete:
            times_s[run] = delivery.air_time_s
    return times_s
