"""Probe a trained model: measure its losses under many plans, the data behind a calibration.

Each plan can be judged on texts of its own, drawn from many (`texts_per_plan`), and is compared
with full rank on the very same texts. On a few texts that all plans shared, the error of the sample
would be the same for every plan, and no fit could average it out.

Shapes: `P` probed plans, `N` projections, `n` texts of a plan, `T` texts in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.files import replace_file
from rankcast.learner.text_complexity import TextComplexity
from rankcast.learner.texts import DatasetSplits
from rankcast.records import AdapterLayout, FloatArray, IntArray

SAVE_EVERY = 10
"""Probes between two saves; an interruption costs at most so many."""


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
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)

        replace_file(path, write)

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


class Probed(Protocol):
    """The part of a `TransformerLearner` that probing needs."""

    data: DatasetSplits
    tokenizer: Any
    accelerator: Any

    @property
    def layout(self) -> AdapterLayout:
        """The projections and their largest rank."""
        ...

    def judge_texts(
        self,
        split: str,
        ranks: IntArray | None,
        max_examples: int | None = None,
        indices: IntArray | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) summed loss, correct answers and predictions of the texts at `indices`."""
        ...


def probe(
    learner: Probed,
    split: str,
    plans: IntArray,
    path: Path | None = None,
    on_probe: Callable[[int, int], None] | None = None,
    *,
    texts_per_plan: int | None = None,
    seed: int = 0,
) -> ProbeSet:
    """Judge texts of a split under every plan, and all of them under full rank, without training.

    Args:
        learner: the trained model, a `TransformerLearner`.
        split: `train`, `validation` or `test`.
        plans: (P, N) ranks.
        path: where the probes are kept; what it already holds is not measured again.
        on_probe: called with how many plans are done and P after each.
        texts_per_plan: n, texts drawn for each plan; None, or as many as there are, for all.
        seed: of these draws, each of which depends on it and the plan's number alone.

    Raises:
        ConfigError: plans for another layout, or fewer than 2 texts for each.
        CheckpointError: `path` holds probes of other plans, other texts or another model.
    """
    plans = _checked(plans, learner.layout)
    stats = TextComplexity(learner.tokenizer).per_sample(learner.data[split].texts)
    full = np.full_like(plans[0], learner.layout.r_max)
    loss, _, count = learner.judge_texts(split, full)
    scale = max(float(count.mean()), 1e-12)
    reference = (loss / scale).astype(np.float32)
    drawn = _draws(seed, len(plans), len(reference), texts_per_plan)
    empty = np.zeros((0, drawn.shape[1]), dtype=np.float32)
    done = ProbeSet(plans[:0], drawn[:0], empty, reference, stats.lexical_entropy, stats.oov_rate)
    if path is not None and path.exists():
        done = _continued(ProbeSet.load(path), done, plans, drawn, path)
    rows = list(done.losses)
    for number, plan in enumerate(plans[len(done) :], start=len(done) + 1):
        own = drawn[number - 1]
        chosen = own if len(own) < len(reference) else None
        rows.append((learner.judge_texts(split, plan, None, chosen)[0] / scale).astype(np.float32))
        if path is not None and (number % SAVE_EVERY == 0 or number == len(plans)):
            done = replace(done, ranks=plans[:number], texts=drawn[:number], losses=np.stack(rows))
            if learner.accelerator.is_main_process:
                done.save(path)
        if on_probe is not None:
            on_probe(number, len(plans))
    return replace(done, ranks=plans, texts=drawn, losses=np.stack(rows)[: len(plans)])


def random_plans(rng: np.random.Generator, n: int, layout: AdapterLayout) -> IntArray:
    """Draw (n, N) ranks that cover what allocators choose, the empty and the full plan first.

    The mean rank is r_max·u² with u even in 0..1, so that half of the plans are below a quarter of
    r_max, as on bad links. A third of them spread it evenly; a third by a log-normal preference
    for each projection; a third by preferences for layers and for kinds.

    Raises:
        ConfigError: fewer than two plans.
    """
    if n < 2:
        raise ConfigError(f"At least 2 plans are probed, the empty and the full one; got {n}.")
    n_projections, r_max = layout.n_projections, layout.r_max
    level = r_max * rng.random(n) ** 2
    width = rng.uniform(0.3, 2.0, (n, 1))
    own = rng.standard_normal((n, n_projections))
    shared = sum(
        rng.standard_normal((n, n_projections))[:, index]
        for index in (_index(p.layer for p in layout.projections), _index(_kinds(layout)))
    )
    manner = rng.integers(0, 3, (n, 1))
    preference = np.exp(width * np.select([manner == 1, manner == 2], [own, shared], 0.0))
    expected = _spread(preference, level, r_max)
    binomial = rng.binomial(r_max, expected / r_max)
    rounded = np.floor(expected + rng.random(expected.shape)).astype(np.int64)
    # Allocators do not scatter a preference: half of the uneven plans keep to what is expected.
    ranks = np.where((manner > 0) & (rng.random((n, 1)) < 0.5), rounded, binomial)
    ranks[0], ranks[1] = 0, r_max
    return np.clip(ranks, 0, r_max).astype(np.int64)


def _spread(preference: FloatArray, level: FloatArray, r_max: int) -> FloatArray:
    """Return (P, N) expected ranks in proportion to a preference, at most r_max, of mean level."""
    low, high = np.zeros(len(level)), r_max / preference.min(axis=1)
    for _ in range(50):
        middle = (low + high) / 2
        mean = np.minimum(middle[:, None] * preference, r_max).mean(axis=1)
        low, high = np.where(mean < level, middle, low), np.where(mean < level, high, middle)
    return np.minimum(high[:, None] * preference, r_max)


def _kinds(layout: AdapterLayout) -> list[str]:
    return [p.kind for p in layout.projections]


def _index(labels: Any) -> IntArray:
    """Return for each label which one it is, 0-based."""
    return np.unique(list(labels), return_inverse=True)[1]


def _checked(plans: IntArray, layout: AdapterLayout) -> IntArray:
    """Return the plans as (P, N) integers, or raise `ConfigError`."""
    plans = np.asarray(plans)
    if plans.ndim != 2 or plans.shape[1] != layout.n_projections or not len(plans):
        raise ConfigError(
            f"Plans have shape (P, {layout.n_projections}) with P > 0, got {plans.shape}."
        )
    return plans.astype(np.int64)


def _draws(seed: int, n_plans: int, n_texts: int, texts_per_plan: int | None) -> IntArray:
    """Return (P, n) positions of each plan's texts, rising, or raise `ConfigError`."""
    if texts_per_plan is None or texts_per_plan >= n_texts:
        return np.tile(np.arange(n_texts), (n_plans, 1))
    if texts_per_plan < 2:
        raise ConfigError(f"Each plan is probed on at least 2 texts, not {texts_per_plan}.")
    draws = [
        np.random.default_rng([seed, number]).choice(n_texts, texts_per_plan, replace=False)
        for number in range(n_plans)
    ]
    return np.sort(draws, axis=1).astype(np.int64)


def _continued(
    kept: ProbeSet, fresh: ProbeSet, plans: IntArray, drawn: IntArray, path: Path
) -> ProbeSet:
    """Return the probes that are there, if they are of this model, these texts and plans."""
    k = min(len(kept), len(plans))
    same_texts = (
        kept.n_texts == fresh.n_texts
        and np.allclose(kept.lexical_entropy, fresh.lexical_entropy)
        and np.array_equal(kept.texts[:k], drawn[:k])
    )
    if not same_texts or not np.allclose(
        kept.reference_losses, fresh.reference_losses, rtol=1e-3, atol=1e-3
    ):
        raise CheckpointError(
            f"{path} holds probes of other texts or of another model: full rank loses "
            f"{kept.reference_losses.mean():.4f} on {kept.n_texts} texts there, "
            f"{kept.texts_per_plan} of them for each plan, and "
            f"{fresh.reference_losses.mean():.4f} on {fresh.n_texts} here, {drawn.shape[1]} for "
            f"each. Delete it, or probe the model that it belongs to, with the same seed."
        )
    if not np.array_equal(kept.ranks[:k], plans[:k]):
        raise CheckpointError(
            f"{path} holds probes of other plans. Delete it, or draw the plans from the same seed."
        )
    return replace(kept, ranks=kept.ranks[:k], texts=kept.texts[:k], losses=kept.losses[:k])
