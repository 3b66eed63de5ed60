"""Ranks and steps by what a model is measured to lose with each: `pack --texts --target-bytes`.

One projection at a time is put at each of its levels, twice: while all others are as they were
trained, and while all others are as in a file of the size. How far the answers move from the
adapter's is measured each time. The exact solver takes the levels whose mean losses are least
together and fit.

Why the mean: near the adapter the loss is quadratic in the errors. A projection's error alone gives
its own term, and beside the others' errors its own and twice what it has in common with them. That
is not small. Components that are left out all make the update smaller, and such errors add up.

Shapes: `N` projections, `K` levels beside nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from rankcast.adapters.arrays import load_factors, load_tensors
from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.coded_levels import CodedLevels
from rankcast.codec.container import Container
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ConfigError, DataError, InfeasibleSizeError
from rankcast.learner.answer_memory import AnswerMemory
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.capacity import Awgn
from rankcast.packaging.texts import LEVEL_TEXTS, OnPass
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState

_ROOM_RATIO = 1.01


@dataclass(frozen=True, eq=False)
class MeasuredLevels:
    """Levels of an adapter with what each loses.

    Attributes:
        coded: the levels.
        alone: (N, K + 1) what each loses while all other projections are as they were trained.
        beside: (N, K + 1) likewise while they are as in a file of the size. Both are counted from
            a projection's best level [nats for each prediction].

    Raises:
        ConfigError: losses of other levels, or not finite.
    """

    coded: CodedLevels
    alone: FloatArray
    beside: FloatArray

    def __post_init__(self) -> None:
        """Refuse losses of other levels."""
        shape = self.coded.levels.bits.shape
        for losses in (self.alone, self.beside):
            if losses.shape != shape or not np.isfinite(losses).all():
                raise ConfigError(
                    f"Losses must be finite, one for each projection and level: {shape}, got "
                    f"{losses.shape}."
                )

    @property
    def losses(self) -> FloatArray:
        """(N, K + 1) the mean of both; what a plan loses is their sum, and a constant."""
        return (self.alone + self.beside) / 2

    def plan(self, component_bits: float) -> IntArray:
        """Return the (N,) levels that lose least of those of at most so many counted bits."""
        levels = self.coded.levels
        layout = AdapterLayout(self.coded.source.tensors.projections, levels.n_levels)
        problem = LevelProblem.of(levels, layout, Awgn(), link_weight=0.0)
        link = LinkState(np.zeros(1), np.array([component_bits]), np.ones(1))  # a bit/s at 0 dB
        losses = self.losses
        return knapsack(losses[:, :1] - losses, problem, link)[0]

    def predicted(self, plan: IntArray) -> float:
        """Return what an (N,) plan loses, but for a constant."""
        return float(self.losses[np.arange(len(plan)), plan].sum())

    def plan_within(self, budget_bits: float) -> IntArray:
        """Return the (N,) plan that loses least of those whose whole file fits.

        Budgets of components are tried on a grid that does not depend on the file's, so that a
        larger file is never predicted to lose more.

        Args:
            budget_bits: of the whole file.

        Raises:
            InfeasibleSizeError: no file that keeps anything of the adapter fits.
        """
        bits = self.coded.levels.bits
        least, most = int(bits[bits > 0].min(initial=1 << 60)), int(bits[:, -1].sum())
        found, smallest, low = None, 0, 0
        high = 2 + int(np.log(max(most / least, 1.0)) / np.log(_ROOM_RATIO))
        while low < high:
            middle = (low + high) // 2
            plan = self.plan(least * _ROOM_RATIO**middle)
            n_bits = self.coded.file(plan).n_bits
            if n_bits <= budget_bits:
                found, low = plan, middle + 1
            else:
                smallest, high = n_bits, middle
        if found is None or not found.any():
            raise InfeasibleSizeError(-(-smallest // 8), int(budget_bits // 8), trainable=False)
        return found

    def scaled(self, gain: float) -> MeasuredLevels:
        """Return levels of the adapter made larger; what each loses is taken to stay the same."""
        return replace(self, coded=replace(self.coded, source=self.coded.source.scaled(gain)))

    def file(self, budget_bits: float) -> Container:
        """Return the file of `plan_within`."""
        return self.coded.file(self.plan_within(budget_bits))


def measure_levels(
    learner: TransformerLearner,
    whole: AdapterSnapshot,
    coded: CodedLevels,
    near: AdapterTensors,
    *,
    n_texts: int = LEVEL_TEXTS,
    on_pass: OnPass | None = None,
) -> MeasuredLevels:
    """Return what the levels of an adapter lose, as a mean of both ways; see above.

    Args:
        learner: with the model; it holds parts of `near` afterwards.
        whole: the adapter as it was trained.
        coded: its levels.
        near: what a file of about the size decodes to.
        n_texts: training texts on which is measured, drawn at random; all if there are fewer.
        on_pass: told of progress.

    Raises:
        ConfigError: fewer than one text is asked for.
        DataError: there are no texts.
    """
    n_known = len(learner.data.train)
    if n_texts < 1:
        raise ConfigError(f"Levels are measured on at least one text, got {n_texts}.")
    if not n_known:
        raise DataError("There are no texts to measure levels on.")
    texts = np.random.default_rng(0).permutation(n_known)[:n_texts]
    memory = None if learner.is_causal else AnswerMemory(n_known)
    ask = partial(learner.divergence_from, whole, "train", texts, memory)
    both, n_passes = [], 2 * int(coded.counts.sum())
    for others in (coded.source.tensors, near):
        losses = np.zeros(coded.levels.bits.shape)
        for i, level in _changed(learner, coded, others):
            losses[i, level:] = ask()
            if on_pass is not None:
                done = len(both) * n_passes // 2 + int(coded.counts[:i].sum()) + level + 1
                on_pass("levels", done, n_passes)
        both.append(losses - losses.min(axis=1, keepdims=True))
    return MeasuredLevels(coded, *both)


def _changed(
    learner: TransformerLearner, coded: CodedLevels, others: AdapterTensors
) -> Iterator[tuple[int, int]]:
    """Yield each projection and level while the learner has it, and all others as they are."""
    adapter = learner.adapter
    load_tensors(adapter, others)
    adapter.set_ranks(np.full(len(coded.counts), adapter.layout.r_max))
    for i, count in enumerate(coded.counts.tolist()):
        for level in range(count):
            load_factors(adapter, i, coded.factors(i, level))
            yield i, level
        load_factors(adapter, i, others.factors[i])
