"""The records that the parts pass to one another: frozen, typed, with units in the names.

Shapes: `B` parallel environments, `N` projections that carry an adapter. Arrays always have
the batch axis; a single environment has B = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import LinkError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear map of the base model that carries an adapter (a member of Eq. 1).

    Attributes:
        name: dotted module path in the base model.
        layer: index of its transformer layer, 0-based.
        kind: its role: `q`, `k`, `v`, `o`, `fc1`, `fc2`, or the architecture's own word
            (`gate`, fused `qkv`, …).
        d_in: input width.
        d_out: output width.
    """

    name: str
    layer: int
    kind: str
    d_in: int
    d_out: int

    @property
    def params_per_rank(self) -> int:
        """Numbers that one more rank costs: a column of P, a row of Q, one singular value."""
        return self.d_in + self.d_out + 1


@dataclass(frozen=True)
class AdapterLayout:
    """The adapted projections in order, and the largest rank that each may take."""

    projections: tuple[Projection, ...]
    r_max: int

    @property
    def n_projections(self) -> int:
        """N: 6·L for the six projections of the paper."""
        return len(self.projections)

    @property
    def n_layers(self) -> int:
        """L: the number of layers that carry at least one adapter."""
        return len({p.layer for p in self.projections})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of projection, in order of first appearance."""
        return tuple(dict.fromkeys(p.kind for p in self.projections))

    @cached_property
    def params_per_rank(self) -> IntArray:
        """(N,) numbers transmitted per unit of rank, exact widths."""
        return np.array([p.params_per_rank for p in self.projections], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class LinkState:
    """B radio links at one moment.

    Attributes:
        snr_db: (B,) received Es/N0 [dB].
        bandwidth_hz: (B,) W_t [Hz].
        deadline_s: (B,) T_max [s], the time in which the plan has to arrive.

    Raises:
        LinkError: NaN or infinite SNR; bandwidth or deadline not positive and finite.
    """

    snr_db: FloatArray
    bandwidth_hz: FloatArray
    deadline_s: FloatArray

    def __post_init__(self) -> None:
        """Refuse values that no receiver could measure."""
        snr, bandwidth, deadline = (
            np.atleast_1d(np.asarray(x, dtype=np.float64))
            for x in (self.snr_db, self.bandwidth_hz, self.deadline_s)
        )
        snr, bandwidth, deadline = np.broadcast_arrays(snr, bandwidth, deadline)
        if not np.isfinite(snr).all():
            raise LinkError(f"SNR must be a finite number of dB, got {snr.tolist()}.")
        for name, unit, value in (
            ("bandwidth", "Hz", bandwidth),
            ("deadline", "seconds", deadline),
        ):
            if not (np.isfinite(value).all() and (value > 0).all()):
                raise LinkError(
                    f"{name} must be a positive number of {unit}, got {value.tolist()}."
                )
        object.__setattr__(self, "snr_db", snr)
        object.__setattr__(self, "bandwidth_hz", bandwidth)
        object.__setattr__(self, "deadline_s", deadline)

    @property
    def size(self) -> int:
        """B."""
        return len(self.snr_db)

    def select(self, chosen: NDArray[np.bool_]) -> LinkState:
        """Return the links that a (B,) mask chooses."""
        return LinkState(self.snr_db[chosen], self.bandwidth_hz[chosen], self.deadline_s[chosen])


@dataclass(frozen=True, slots=True)
class TextStats:
    """How hard the text of B batches is.

    Attributes:
        lexical_entropy: (B,) mean Shannon entropy of the word distribution [nats].
        oov_rate: (B,) share of words for which the tokenizer has no single token, in [0, 1].
    """

    lexical_entropy: FloatArray
    oov_rate: FloatArray

    def select(self, chosen: NDArray[np.bool_] | IntArray) -> TextStats:
        """Return the texts that a (B,) mask or an index chooses."""
        return TextStats(self.lexical_entropy[chosen], self.oov_rate[chosen])


@dataclass(frozen=True, slots=True)
class Observation:
    """The state s_t of Sec. IV-A for B environments.

    Differs from the paper: the deadline T_max is part of the link state, because users set it.

    Attributes:
        link: SNR, bandwidth, deadline.
        text: lexical entropy and OOV rate of the batch that comes next.
        ranks: (B, N) active ranks; where only the increase is paid for, those received.
    """

    link: LinkState
    text: TextStats
    ranks: IntArray


@dataclass(frozen=True, slots=True)
class Plan:
    """A rank vector with what it costs on the link that it was made for.

    Attributes:
        ranks: (N,) rank of each projection.
        payload_bits: bits on the air.
        rate_bps: C_t [bit/s].
        transmission_time_s: payload_bits / rate_bps.
        link_cost: η = payload_bits / (rate_bps · deadline_s); at most 1 means in time.
    """

    ranks: IntArray
    payload_bits: float
    rate_bps: float
    transmission_time_s: float
    link_cost: float

    @property
    def arrives(self) -> bool:
        """Whether the plan meets its deadline (Eq. 7)."""
        return self.link_cost <= 1.0
