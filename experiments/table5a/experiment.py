"""Table V(a): the weight λ of the link in the reward."""

from rankcast.experiment.sweeps import Order, Sweep, Variant, default_as

EXPERIMENT = Sweep(
    name="table5a",
    title="The weight of the link",
    question="Is λ = 0.1 the best compromise?",
    source="Table V(a)",
    variants=(
        Variant("λ = 1", "lambda-1", {"world": {"link_weight": 1.0}}, 95.07),
        default_as("λ = 0.1", 95.41),
        Variant("λ = 0.01", "lambda-0.01", {"world": {"link_weight": 0.01}}, 94.95),
    ),
    orders=(Order("λ = 0.1", "λ = 1"), Order("λ = 0.1", "λ = 0.01")),
    note="Rewards under different λ are different quantities: compare accuracy, and regret, which "
    "is relative to each λ's own optimum.",
).experiment()
