"""The errors that rankcast raises on purpose.

RankcastError
├── LinkError                     an impossible link: NaN SNR, no bandwidth, no time
│   └── InfeasibleDeadlineError   not even the smallest plan arrives; names the shortfall
├── DataError                     a data set that cannot be learned from
├── ModelError                    a base model that cannot carry adapters
├── ConfigError                   a setting that does not exist or makes no sense
├── OutOfMemoryError              a model, batch or text too large for the memory
├── CheckpointError               a run that cannot be continued or loaded
├── CodecError                    bytes that are no adapter, or an adapter that cannot be coded
│   └── InfeasibleSizeError       no file of an adapter is as small as was asked; names the smallest
└── DeliveryError                 a release, store, server or device that cannot do what was asked
    ├── UnavailableError          no room on the disk, nobody answers: try again later
    └── TrustError                metadata or bytes that must not be trusted; names the attack

Each message says what was wrong and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RankcastError(Exception):
    """Base of every error that rankcast raises on purpose."""


class LinkError(RankcastError, ValueError):
    """A link state outside physics: NaN or infinite SNR, bandwidth or deadline not positive."""


class InfeasibleDeadlineError(LinkError):
    """The smallest allowed plan does not fit the deadline (Eq. 7).

    Attributes:
        payload_bits: bits of the smallest plan.
        budget_bits: bits that the link carries before the deadline.
    """

    _REMEDY = "Give it more time, more bandwidth, or allow a smaller minimum rank."

    def __init__(self, payload_bits: float, budget_bits: float, remedy: str = _REMEDY) -> None:
        """Word the shortfall from the two bit counts, and the remedy."""
        self.payload_bits = float(payload_bits)
        self.budget_bits = float(budget_bits)
        factor = f" (a factor of {payload_bits / budget_bits:.3g})" if budget_bits > 0 else ""
        super().__init__(
            f"The smallest plan needs {payload_bits:,.0f} bits, but the link carries only "
            f"{budget_bits:,.0f} before the deadline: short by {payload_bits - budget_bits:,.0f} "
            f"bits{factor}. {remedy}"
        )


class DataError(RankcastError, ValueError):
    """A data set with a missing column, empty text, one class, or a label out of range."""


class ModelError(RankcastError, ValueError):
    """A base model without projections to adapt, or whose shape an adapter does not match."""


class ConfigError(RankcastError, ValueError):
    """A setting that does not exist or whose value makes no sense."""


class OutOfMemoryError(RankcastError, MemoryError):
    """A model, a batch or a text too large for the memory; names the options to lower."""


class CheckpointError(RankcastError, RuntimeError):
    """A checkpoint that is truncated or belongs to another model or configuration."""


class CodecError(RankcastError, ValueError):
    """Bytes that are no adapter, damaged ones, or an adapter that cannot be coded."""


class InfeasibleSizeError(CodecError):
    """No file of an adapter that keeps anything of its update is as small as was asked.

    Attributes:
        smallest_bytes: of the smallest such file.
        target_bytes: that were asked for.
        trainable: whether training can make a smaller one.
    """

    def __init__(self, smallest_bytes: int, target_bytes: int, *, trainable: bool) -> None:
        """Word the shortfall and the remedy."""
        self.smallest_bytes = smallest_bytes
        self.target_bytes = target_bytes
        self.trainable = trainable
        remedy = f"Ask for at least {smallest_bytes:,} bytes"
        if trainable:
            remedy += f", or train for the size: rankcast qat ADAPTER --target-bytes {target_bytes}"
        super().__init__(
            f"Without training the smallest file of this adapter has {smallest_bytes:,} bytes, and "
            f"the target is {target_bytes:,}: short by {smallest_bytes - target_bytes:,}. {remedy}."
        )


class DeliveryError(RankcastError, RuntimeError):
    """A release, a store, a server or a device that cannot do what was asked."""


class UnavailableError(DeliveryError):
    """Something that is not there now, such as room on a disk; the same may work later."""


class TrustError(DeliveryError):
    """Metadata or bytes that must not be trusted: tampered with, rolled back, frozen, endless."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(what: str, word: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not among the known ones.

    Raises:
        ConfigError: names the known words and the closest of them.
    """
    if word not in known:
        raise ConfigError(
            f"Unknown {what} {word!r}{nearest(word, known)}. Choose one of {', '.join(known)}."
        )
