"""Table V(a): the weight λ of the link in the reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from studies.harness.spec import Presentation, Result
from studies.shared.sweeps import Order, Sweep, Variant, default_as

SWEEP = Sweep(
    name="table5a",
    title="The weight of the link",
    question="Is λ = 0.1 the best compromise?",
    source="Table V(a)",
    variants=(
        Variant("λ = 1", "lambda-1", {"world": {"link_weight": 1.0}}, 95.07),
        default_as("λ = 0.1", 95.41),
        Variant("λ = 0.01", "lambda-0.01", {"world": {"link_weight": 0.01}}, 94.95),
        Variant("λ = 0: fills the deadline", "lambda-0", {"world": {"link_weight": 0.0}}),
    ),
    orders=(Order("λ = 0.1", "λ = 1"), Order("λ = 0.1", "λ = 0.01")),
    note="Rewards under different λ are different quantities: compare accuracy, and regret, which "
    "is relative to each λ's own optimum. λ = 0 is not the paper's: it serves comparisons at equal "
    "bits.",
)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Leave out the claims about rewards, which the table does not make."""
    shown = SWEEP.present(result, inputs)
    return replace(shown, claims=tuple(c for c in shown.claims if c.ours.endswith("points")))


STUDY = replace(SWEEP.study(), present=present)
