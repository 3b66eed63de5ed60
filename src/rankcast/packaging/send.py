"""Send a container over a simulated air interface, and say what of it can be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rankcast.codec.container import Container, read_container
from rankcast.errors import CodecError
from rankcast.link.capacity import Awgn
from rankcast.link.transport import BlockChannel, BlockReport, Delivery, Sender, air_times_s

_PREDICTED_RUNS = 100


@dataclass(frozen=True)
class Transfer:
    """A container that was sent.

    Attributes:
        delivery: of the bytes.
        arrived: what can be decoded; None if not even the header arrived.
        whole: what was sent.
        predicted_s: mean air time of all of it by the table [s]; NaN if it never gets through, or
            no prediction was asked for.
        shannon_s: air time at Shannon's rate over this bandwidth, without fading [s].
    """

    delivery: Delivery
    arrived: Container | None
    whole: Container
    predicted_s: float
    shannon_s: float

    def to_plain(self) -> dict[str, Any]:
        """Return the transfer for JSON."""
        delivery, chunks = self.delivery, self.arrived.chunks if self.arrived else ()
        last = self.whole.header.chunks[len(chunks) - 1] if chunks else None
        return {
            "sent_bytes": delivery.sent_bytes,
            "received_bytes": len(delivery.received),
            "complete": delivery.complete,
            "air_time_s": delivery.air_time_s,
            "predicted_air_time_s": None if math.isnan(self.predicted_s) else self.predicted_s,
            "shannon_air_time_s": self.shannon_s,
            "blocks": len(delivery.blocks),
            "retransmissions": delivery.n_retransmissions,
            "lost_blocks": sum(not block.arrived for block in delivery.blocks),
            "schemes": [block.scheme for block in delivery.blocks],
            "chunks": len(chunks),
            "chunks_sent": len(self.whole.chunks),
            "loss": None if last is None else last.loss,
            "accuracy": None if last is None else last.accuracy,
        }


def send_container(
    whole: Container,
    sender: Sender,
    channel: BlockChannel,
    snr_db: Callable[[np.random.Generator], Iterable[float]],
    mean_snr_db: ArrayLike,
    *,
    deadline_s: float = math.inf,
    predict: bool = True,
    seed: int = 0,
    progress: Callable[[int, BlockReport], None] = lambda _received, _block: None,
) -> Transfer:
    """Send a container until it has arrived, one block is lost, or time is up.

    Args:
        whole: the coded adapter.
        sender: carrier, schemes and link adaptation.
        channel: what carries the blocks.
        snr_db: draws the Es/N0 of one slot after another [dB].
        mean_snr_db: their mean without fading, or the values of a trace, for Shannon's rate [dB].
        deadline_s: slots that end later are not used [s].
        predict: also ask the table, which knows one SNR a slot, for the mean air time.
        seed: of fading, noise and the prediction.
        progress: called after each block with the bytes received so far.

    Raises:
        LinkError: a deadline that is not positive, or an SNR that is no finite number of dB.
    """
    data = whole.to_bytes()
    of_fading, of_channel, of_prediction = np.random.default_rng(seed).spawn(3)
    delivery = sender.send(
        data, snr_db(of_fading), channel, of_channel, deadline_s=deadline_s, progress=progress
    )
    times_s = np.array([math.nan])
    if predict:
        times_s = air_times_s(
            sender, len(data), lambda: snr_db(of_prediction), of_prediction, _PREDICTED_RUNS
        )
    try:
        arrived = read_container(delivery.received, allow_prefix=True)
    except CodecError:  # not even the header is whole
        arrived = None
    shannon = float(Awgn().spectral_efficiency(np.asarray(mean_snr_db, dtype=np.float64)).mean())
    return Transfer(
        delivery,
        arrived,
        whole,
        float(np.nanmean(times_s)) if np.isfinite(times_s).any() else math.nan,
        8 * len(data) / (shannon * sender.link.carrier.bandwidth_hz),
    )
