"""What a trained model loses under many rank vectors: the measurements behind a calibration.

Shapes: `P` probed plans, `N` projections, `n` texts. Every plan is judged on the same texts, so
that two plans differ by what they are, not by what they were shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.finetune.complexity import TextComplexity
from rankcast.finetune.texts import DatasetSplits
from rankcast.records import AdapterLayout, FloatArray, IntArray

SAVE_EVERY = 10
"""Probes between two saves; an interruption costs at most so many."""


class Probed(Protocol):
    """What of a `TransformerLearner` is needed to probe it."""

    data: DatasetSplits
    tokenizer: Any
    accelerator: Any

    @property
    def layout(self) -> AdapterLayout:
        """The projections and their largest rank."""
        ...

    def judge_texts(
        self, split: str, ranks: IntArray | None, max_examples: int | None
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) summed loss, right answers and predictions of each text of a split."""
        ...


@dataclass(frozen=True)
class ProbeSet:
    """Losses of one trained model under P plans.

    Attributes:
        ranks: (P, N) plans.
        losses: (P, n) float32 loss of each text under each plan, weighted so that the mean over
            the texts is the mean loss of a prediction.
        reference_losses: (n,) float32 likewise under full rank.
        lexical_entropy: (n,) of each text [nats].
        oov_rate: (n,) of each text, in [0, 1].

    Raises:
        DataError: shapes that do not belong together, or losses that are not finite.
    """

    ranks: IntArray
    losses: NDArray[np.float32]
    reference_losses: NDArray[np.float32]
    lexical_entropy: FloatArray
    oov_rate: FloatArray

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        texts = {len(self.reference_losses), len(self.lexical_entropy), len(self.oov_rate)}
        if self.ranks.ndim != 2 or texts != {self.losses.shape[-1]}:
            raise DataError(
                f"A probe set needs ranks (P, N), losses (P, n) and n statistics; got "
                f"{self.ranks.shape}, {self.losses.shape} and {sorted(texts)}."
            )
        if len(self.ranks) != len(self.losses):
            raise DataError(f"{len(self.ranks)} plans were probed, but {len(self.losses)} judged.")
        if not (np.isfinite(self.losses).all() and np.isfinite(self.reference_losses).all()):
            raise DataError("Some probed losses are not finite: the model has diverged.")

    def __len__(self) -> int:
        """P."""
        return len(self.ranks)

    @property
    def n_texts(self) -> int:
        """How many texts every plan was judged on."""
        return self.losses.shape[1]

    def mean_losses(self, texts: NDArray[np.bool_] | None = None) -> FloatArray:
        """Return (P,) mean loss of each plan over the texts marked in an (n,) mask, or over all."""
        chosen = self.losses if texts is None else self.losses[:, texts]
        return chosen.mean(axis=1, dtype=np.float64)

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


def probe(
    learner: Probed,
    split: str,
    plans: IntArray,
    path: Path | None = None,
    on_probe: Callable[[int, int], None] | None = None,
) -> ProbeSet:
    """Judge every text of a split under every plan, without training.

    Args:
        learner: the trained model, a `TransformerLearner`.
        split: `train`, `validation` or `test`.
        plans: (P, N) ranks.
        path: where the probes are kept; what it already holds is not measured again.
        on_probe: called with how many plans are done and P after each.

    Raises:
        ConfigError: plans for another layout.
        CheckpointError: `path` holds probes of other plans, other texts or another model.
    """
    plans = _checked(plans, learner.layout)
    texts = TextComplexity(learner.tokenizer).per_sample(learner.data[split].texts)
    reference = _losses(learner, split, np.full_like(plans[0], learner.layout.r_max))
    empty = np.zeros((0, len(reference)), dtype=np.float32)
    done = ProbeSet(plans[:0], empty, reference, texts.lexical_entropy, texts.oov_rate)
    if path is not None and path.exists():
        done = _continued(ProbeSet.load(path), done, plans, path)
    rows = list(done.losses)
    for number, plan in enumerate(plans[len(done) :], start=len(done) + 1):
        rows.append(_losses(learner, split, plan))
        if path is not None and (number % SAVE_EVERY == 0 or number == len(plans)):
            done = replace(done, ranks=plans[:number], losses=np.stack(rows))
            if learner.accelerator.is_main_process:
                done.save(path)
        if on_probe is not None:
            on_probe(number, len(plans))
    return replace(done, ranks=plans, losses=np.stack(rows)[: len(plans)])


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


def _losses(learner: Probed, split: str, ranks: IntArray) -> NDArray[np.float32]:
    loss, _, count = learner.judge_texts(split, ranks, None)
    return (loss / max(float(count.mean()), 1e-12)).astype(np.float32)


def _continued(found: ProbeSet, fresh: ProbeSet, plans: IntArray, path: Path) -> ProbeSet:
    """Return the probes that are there, if they are of this model, these texts and plans."""
    same_texts = found.n_texts == fresh.n_texts and np.allclose(
        found.lexical_entropy, fresh.lexical_entropy
    )
    if not same_texts or not np.allclose(
        found.reference_losses, fresh.reference_losses, rtol=1e-3, atol=1e-3
    ):
        raise CheckpointError(
            f"{path} holds probes of other texts or of another model: full rank loses "
            f"{found.reference_losses.mean():.4f} there and {fresh.reference_losses.mean():.4f} "
            f"here. Delete it, or probe the model that it belongs to."
        )
    k = min(len(found), len(plans))
    if not np.array_equal(found.ranks[:k], plans[:k]):
        raise CheckpointError(
            f"{path} holds probes of other plans. Delete it, or draw the plans from the same seed."
        )
    return replace(found, ranks=found.ranks[:k], losses=found.losses[:k])
