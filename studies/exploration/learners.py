"""The learners and the MDPs of the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EVALUATE_EVERY = 25
INTERACTIONS = 0.4  # their share of the variance

TEACHER = "teacher"
ALIKE = "alike"
"""The teacher, whose belief begins with one gain a bit for all levels instead of their energies."""
Learner = tuple[str, float]
"""Variant and share of the episodes in which the teacher acts."""
LEARNERS: dict[Learner, str] = {
    (TEACHER, 1.0): "teacher (Thompson sampling, exact solver)",
    ("airllm", 0.9): "AirLLM, teacher acts in 90 %",
    ("ddim", 0.9): "DDIM alone, teacher acts in 90 %",
    ("airllm", 0.0): "AirLLM, policy acts",
    ("ddim", 0.0): "DDIM alone, policy acts",
}
"""With their labels."""
LEVEL_LEARNERS: dict[Learner, str] = {
    **{key: LEARNERS[key] for key in ((TEACHER, 1.0), ("airllm", 0.9), ("ddim", 0.9))},
    (ALIKE, 1.0): "teacher that does not know energies",
}
"""Those that learn levels."""


@dataclass(frozen=True, slots=True)
class Mdp:
    """What is allocated, and how what it is worth adds up.

    Attributes:
        words: that name it.
        interaction_share: of the variance of the utility that comes from pairs of projections.
        levels: whether levels are allocated, and coded bits paid for, instead of ranks.
    """

    words: str
    interaction_share: float = 0.0
    levels: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What a job's settings say of it; ranks are the rule, so only levels are named."""
        found: dict[str, Any] = {"interaction_share": self.interaction_share}
        return found | {"levels": True} if self.levels else found

    @property
    def learners(self) -> dict[Learner, str]:
        """Who learns here, with their labels."""
        return LEVEL_LEARNERS if self.levels else LEARNERS


ADDITIVE = Mdp("additive utility")
RANK_MDPS = (ADDITIVE, Mdp("pairwise interactions", INTERACTIONS))
LEVEL_MDPS = (
    Mdp("levels, additive utility", 0.0, levels=True),
    Mdp("levels, pairwise interactions", INTERACTIONS, levels=True),
)
