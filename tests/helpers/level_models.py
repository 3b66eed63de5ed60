"""A tiny model whose adapter has levels."""

from __future__ import annotations

from helpers.models import keyword_splits, randomise
from rankcast.adapters.arrays import balanced_tensors_of
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.levels import Levels
from rankcast.codec.planner import Spreads
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.level_learner import LevelLearner
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.capacity import Awgn

CONFIG = FinetuneConfig(
    model="tiny", lr=1e-2, r_max=4, alpha=4.0, batch_size=8, warmup_steps=0, nested_prob=0.0,
    orthogonality_weight=0.0, mixed_precision="no", measure_reference=False,
)  # fmt: skip


def level_problem(learner: TransformerLearner, n_levels: int = 4) -> LevelProblem:
    """Return the levels of a learner's adapter, over a link without fading."""
    spreads = Spreads.of(balanced_tensors_of(learner.adapter))
    levels = Levels.of_spreads(spreads, n_levels=n_levels, overhead_bits=800.0)
    return LevelProblem.of(levels, learner.layout, Awgn())


def tiny_levels(random_share: float = 0.0, rate_weight: float = 0.0) -> LevelLearner:
    """Return a learner of levels with a random adapter."""
    learner = TransformerLearner(CONFIG, keyword_splits())
    randomise(learner.adapter, 0, scale=0.5)
    return LevelLearner(learner, level_problem(learner), random_share, rate_weight)
