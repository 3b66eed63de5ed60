"""Questions of ours about variants of a policy: what one earns more than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankcast.experiment.readouts import in_pairs, reward
from rankcast.experiment.spec import Claim, Row
from rankcast.statistics import paired_t

Rows = Mapping[str, Sequence[Row]]
"""Rows of each variant, by label."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much final reward one variant earns more than another, measured seed by seed.

    Attributes:
        claim: what a positive difference says, as a sentence.
        one: label of the variant from which the other is subtracted.
        other: label of the other.
        note: what a reader has to know to judge it.
    """

    claim: str
    one: str
    other: str
    note: str = "Calibrated learner, final reward."

    def claims(self, rows: Rows) -> list[Claim]:
        """Return the difference, if both variants have a seed in common."""
        both = in_pairs(rows.get(self.one, ()), rows.get(self.other, ()))
        if not both:
            return []
        found = paired_t([reward(one) for one, _ in both], [reward(other) for _, other in both])
        seeds, ours = tuple(one.job.seed for one, _ in both), f"{found.value:+.4f}"
        return [Claim(self.claim, "", ours, found.interval, "measured", seeds, self.note)]
