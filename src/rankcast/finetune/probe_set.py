"""Losses of one trained model under many rank vectors, and what they say of the mean over texts.

Shapes: `P` probed plans, `N` projections, `n` texts of a plan, `T` texts in all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import CheckpointError, DataError
from rankcast.records import FloatArray, IntArray


@dataclass(frozen=True)
class ProbeSet:
    """Losses of one trained model under P plans, each on texts of its own.

    The loss under full rank is known of every text. A plan's mean is estimated from how much more
    than that it loses on its own texts (a control variate), which varies much less between texts
    than the loss does. Where each plan drew its texts, the errors of different plans are
    independent and average out in a fit.

    Attributes:
        ranks: (P, N) plans.
        texts: (P, n) positions of the texts on which each plan was judged, rising.
        losses: (P, n) float32 loss of each of these texts, weighted so that the mean over all T
            texts would be the mean loss of a prediction.
        reference_losses: (T,) float32 likewise under full rank.
        lexical_entropy: (T,) of each text [nats].
        oov_rate: (T,) of each text, in [0, 1].

    Raises:
        DataError: shapes that do not belong together, or losses that are not finite.
    """

    ranks: IntArray
    texts: IntArray
    losses: NDArray[np.float32]
    reference_losses: NDArray[np.float32]
    lexical_entropy: FloatArray
    oov_rate: FloatArray

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        known = {len(self.reference_losses), len(self.lexical_entropy), len(self.oov_rate)}
        if self.ranks.ndim != 2 or self.texts.ndim != 2 or len(known) != 1:
            raise DataError(
                f"A probe set needs ranks (P, N), texts (P, n) and T statistics; got "
                f"{self.ranks.shape}, {self.texts.shape} and {sorted(known)}."
            )
        if self.losses.shape != self.texts.shape or len(self.ranks) != len(self.losses):
            raise DataError(
                f"{len(self.ranks)} plans were probed on texts {self.texts.shape}, but judged "
                f"with losses {self.losses.shape}."
            )
        rising = (np.diff(self.texts, axis=1) > 0).all()
        if not rising or not ((self.texts >= 0) & (self.texts < self.n_texts)).all():
            raise DataError(f"The texts of each plan must rise within 0..{self.n_texts - 1}.")
        if not (np.isfinite(self.losses).all() and np.isfinite(self.reference_losses).all()):
            raise DataError("Some probed losses are not finite: the model has diverged.")

    def __len__(self) -> int:
        """P."""
        return len(self.ranks)

    @property
    def n_texts(self) -> int:
        """T."""
        return len(self.reference_losses)

    @property
    def texts_per_plan(self) -> int:
        """How many texts each plan was judged on: n."""
        return self.texts.shape[1]

    @property
    def differences(self) -> FloatArray:
        """(P, n) loss of each plan's texts minus their loss under full rank."""
        return self.losses.astype(np.float64) - self.reference_losses[self.texts]

    def mean_losses(self, texts: NDArray[np.bool_] | None = None) -> FloatArray:
        """Return (P,) estimated mean loss of each plan over a stratum, NaN where nothing is known.

        The mean under full rank over the whole stratum, plus the mean difference to it over those
        texts of the stratum on which the plan was judged. Where that is all of them, their mean.

        Args:
            texts: (T,) mask of the stratum; None for all texts.

        Raises:
            DataError: no text in the stratum.
        """
        stratum, own, count = self._within(texts)
        total = np.where(own, self.differences, 0.0).sum(axis=1)
        mean = np.divide(total, count, out=np.full(len(self), np.nan), where=count > 0)
        return self.reference_losses[stratum].mean(dtype=np.float64) + mean

    def std_errors(self, texts: NDArray[np.bool_] | None = None) -> FloatArray:
        """Return (P,) standard error of `mean_losses`, infinite below two texts.

        That of the paired difference, as an estimate for the stratum at hand: 0 where a plan was
        judged on every text of it. How the stratum differs from other texts is not in it: all
        plans share that.

        Args:
            texts: (T,) mask of the stratum; None for all texts.

        Raises:
            DataError: no text in the stratum.
        """
        stratum, own, count = self._within(texts)
        differences = self.differences
        mean = np.where(own, differences, 0.0).sum(axis=1) / np.maximum(count, 1)
        squares = np.where(own, (differences - mean[:, None]) ** 2, 0.0).sum(axis=1)
        error = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
        missed = 1.0 - count / stratum.sum()
        return np.where(missed == 0, 0.0, np.where(count > 1, error * np.sqrt(missed), np.inf))

    def _within(
        self, texts: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], IntArray]:
        """Return a stratum (T,), which of the plans' texts are of it (P, n), and how many (P,)."""
        stratum = np.ones(self.n_texts, dtype=bool) if texts is None else np.asarray(texts, bool)
        if not stratum.any():
            raise DataError("There is no text in the stratum. Take fewer strata, or more texts.")
        own = stratum[self.texts]
        return stratum, own, own.sum(axis=1)

    def save(self, path: Path) -> None:
        """Write the set as .npz, under a temporary name until it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the file is not there, is damaged, or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{field.name: file[field.name] for field in fields(cls)})
        except Exception as error:  # a damaged archive raises whatever its first bad byte causes
            raise CheckpointError(
                f"{path} holds no probes ({error}). Delete it and probe again."
            ) from error
