"""Fig. 5: learning curves under each weight of the link; the rows are Table V(a)'s."""

from rankcast.experiment.sweeps import Order, Sweep, Variant, default_as

EXPERIMENT = Sweep(
    name="fig5",
    title="Learning under each weight of the link",
    question="Do small λ give higher rewards?",
    source="Fig. 5",
    variants=(
        Variant("λ = 1", "lambda-1", borrowed="table5a"),
        default_as("λ = 0.1"),
        Variant("λ = 0.01", "lambda-0.01", borrowed="table5a"),
    ),
    orders=(Order("λ = 0.1", "λ = 1"), Order("λ = 0.01", "λ = 1")),
    live=False,
    note="A smaller λ makes every reward larger, whatever is learned: the claim holds by "
    "definition and says nothing of the policy.",
).experiment()
