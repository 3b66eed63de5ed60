"""Fig. 5: learning curves under each weight of the link; the rows are Table V(a)'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from studies.harness.spec import Presentation, Result
from studies.shared.sweeps import Order, Sweep, Variant, default_as

BY_DEFINITION = (
    "A smaller λ makes every reward larger, whatever is learned: the claim holds by definition and "
    "says nothing of the policy."
)

SWEEP = Sweep(
    name="fig5",
    title="Learning under each weight of the link",
    question="Do small λ give higher rewards?",
    source="Fig. 5",
    variants=(
        Variant("λ = 1", "lambda-1", rows_of="table5a"),
        default_as("λ = 0.1"),
        Variant("λ = 0.01", "lambda-0.01", rows_of="table5a"),
    ),
    orders=(Order("λ = 0.1", "λ = 1"), Order("λ = 0.01", "λ = 1")),
    live=False,
    note=BY_DEFINITION,
)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Say beside every claim what it is worth."""
    shown = SWEEP.present(result, inputs)
    return replace(shown, claims=tuple(replace(c, note=BY_DEFINITION) for c in shown.claims))


STUDY = replace(SWEEP.study(), present=present)
