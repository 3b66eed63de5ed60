"""What the state says of the domain of a batch, and what a planner does with it.

By Bayes' rule: the mean lexical entropy and OOV rate of a batch are taken as normal, with the
moments of single texts of each domain; all domains are as likely beforehand. The planner then
chooses, of the plans for each domain and the one for their mixture, the one that is expected to
bring most.

Shapes: `D` domains, `P` plans, `M` batches, `F` statistics shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rankcast.records import FloatArray, IntArray

ENTROPY, OOV = 0, 1
"""Columns of the statistics of texts."""
SHOWN = {"both": [ENTROPY, OOV], "no-entropy": [OOV], "no-oov": [ENTROPY]}
_LEAST = 1e-6  # variance, where all texts of a domain are alike


@dataclass(frozen=True)
class DomainTexts:
    """Moments of the statistics of single texts of each domain.

    Attributes:
        means: (D, F).
        covariances: (D, F, F).
    """

    means: FloatArray
    covariances: FloatArray

    @classmethod
    def of(cls, stats: FloatArray) -> Self:
        """Return those of (D, n, F) statistics of n texts of each domain."""
        n_shown = stats.shape[2]
        covariances = [np.cov(own.T).reshape(n_shown, n_shown) for own in stats]
        return cls(stats.mean(axis=1), np.array(covariances) + _LEAST * np.eye(n_shown))

    def posterior(self, means: FloatArray, batch_size: int) -> FloatArray:
        """Return (M, D) probability of each domain, given the (M, F) means of batches."""
        logs = []
        for mean, covariance in zip(self.means, self.covariances / batch_size, strict=True):
            apart = means - mean
            squares = (apart @ np.linalg.inv(covariance) * apart).sum(axis=1)
            logs.append(-0.5 * (squares + np.linalg.slogdet(covariance)[1]))
        shifted = np.array(logs).T
        shifted -= shifted.max(axis=1, keepdims=True)
        odds = np.exp(shifted)
        return odds / odds.sum(axis=1, keepdims=True)


def batches_of(
    stats: FloatArray, batch_size: int, n_batches: int, rng: np.random.Generator
) -> FloatArray:
    """Return (D, M, F) means over batches, drawn from (D, n, F) statistics of texts."""
    drawn = rng.integers(stats.shape[1], size=(len(stats), n_batches, batch_size))
    return np.array([own[chosen].mean(axis=1) for own, chosen in zip(stats, drawn, strict=True)])


@dataclass(frozen=True)
class Guesses:
    """What is made of batches of each domain.

    Attributes:
        accuracy: share of batches whose most likely domain is theirs.
        chosen: (links, D, P) share of a domain's batches for which each plan is chosen.
    """

    accuracy: float
    chosen: FloatArray


def guesses(
    known: FloatArray, asked: FloatArray, worths: FloatArray, batch_size: int, n_batches: int
) -> Guesses:
    """Return what is made of batches of texts.

    Args:
        known: (D, n, F) shown statistics of texts by which domains are known.
        asked: (D, n, F) those of the texts of which batches are drawn.
        worths: (links, P, D) what each plan is expected to bring to each domain [nats].
        batch_size: texts of a batch.
        n_batches: that are drawn of each domain.
    """
    texts = DomainTexts.of(known)
    means = batches_of(asked, batch_size, n_batches, np.random.default_rng(batch_size))
    n_domains = len(asked)
    posteriors = np.array([texts.posterior(own, batch_size) for own in means])  # (D, M, D)
    right = posteriors.argmax(axis=2) == np.arange(n_domains)[:, None]
    expected = np.einsum("dme,lpe->ldmp", posteriors, worths)
    best: IntArray = expected.argmax(axis=3)  # (links, D, M)
    plans = np.arange(worths.shape[1])
    return Guesses(float(right.mean()), (best[..., None] == plans).mean(axis=2))
