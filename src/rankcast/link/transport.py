"""Bytes over a link, block by block: what was sent, what arrived, and how long it took.

Every transport gives the same `Delivery`, whether blocks are lost by the toss of a coin
(`AbstractChannel`) or because noise was too strong for a decoder (`rankcast.phy.channel`). The
sender picks a scheme from the last reported SNR, sends one transport block per slot, and repeats
it with other redundancy until it arrives or has been sent often enough. Round trips are hidden
behind other blocks (several HARQ processes), so that a slot is all that a transmission costs.

Nothing after a lost block is of use to a receiver that needs a prefix, so that sending stops
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from rankcast.errors import ConfigError, LinkError
from rankcast.link.abstraction import NrLink, OuterLoop
from rankcast.link.slots import Reports
from rankcast.records import FloatArray


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
    """What became of a transfer.

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
    """What carries transport blocks."""

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
        """Return a block whose fate is one uniform number."""
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
        """Refuse what no receiver could report."""
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
        n_slots = math.inf if math.isinf(deadline_s) else math.floor(deadline_s / slot_s + 1e-9)
        known = Reports(iter(snr_db), self.report_delay_slots, n_slots)
        received, blocks, loop = bytearray(), [], self.adaptation
        while len(received) < len(data) and (seen := known.report()) is not None:
            scheme = loop.scheme(self.link, seen)
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
    sender: Sender, n_bytes: int, snr_db: Callable[[], Iterable[float]],
    rng: np.random.Generator, n_runs: int = 200,
) -> FloatArray:  # fmt: skip
    """Return (n_runs,) air times [s] that the abstraction foretells; NaN where a block is lost."""
    channel, found = AbstractChannel(sender.link), np.full(n_runs, np.nan)
    for run in range(n_runs):
        delivery = sender.send(bytes(n_bytes), snr_db(), channel, rng)
        if delivery.complete:
            found[run] = delivery.air_time_s
    return found
