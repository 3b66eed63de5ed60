"""What a trained model loses under many rank vectors: the measurements behind a calibration.

Each plan can be judged on texts of its own, drawn from many (`texts_per_plan`), and is compared
with full rank on the very same texts. On a few texts that all plans shared, the error of the sample
would be the same for every plan, and no fit could average it out.

Shapes: `P` probed plans, `N` projections, `n` texts of a plan, `T` texts in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rankcast.errors import CheckpointError, ConfigError
from rankcast.finetune.complexity import TextComplexity
from rankcast.finetune.probe_set import ProbeSet
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
        self,
        split: str,
        ranks: IntArray | None,
        max_examples: int | None = None,
        indices: IntArray | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) summed loss, right answers and predictions of the texts at `indices`."""
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
    found: ProbeSet, fresh: ProbeSet, plans: IntArray, drawn: IntArray, path: Path
) -> ProbeSet:
    """Return the probes that are there, if they are of this model, these texts and plans."""
    k = min(len(found), len(plans))
    same_texts = (
        found.n_texts == fresh.n_texts
        and np.allclose(found.lexical_entropy, fresh.lexical_entropy)
        and np.array_equal(found.texts[:k], drawn[:k])
    )
    if not same_texts or not np.allclose(
        found.reference_losses, fresh.reference_losses, rtol=1e-3, atol=1e-3
    ):
        raise CheckpointError(
            f"{path} holds probes of other texts or of another model: full rank loses "
            f"{found.reference_losses.mean():.4f} on {found.n_texts} texts there, "
            f"{found.texts_per_plan} of them for each plan, and "
            f"{fresh.reference_losses.mean():.4f} on {fresh.n_texts} here, {drawn.shape[1]} for "
            f"each. Delete it, or probe the model that it belongs to, with the same seed."
        )
    if not np.array_equal(found.ranks[:k], plans[:k]):
        raise CheckpointError(
            f"{path} holds probes of other plans. Delete it, or draw the plans from the same seed."
        )
    return replace(found, ranks=found.ranks[:k], texts=found.texts[:k], losses=found.losses[:k])
