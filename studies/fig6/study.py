"""Fig. 6: learning curves under each prediction type; the rows are Table V(b)'s."""

from studies.shared.sweeps import Order, Sweep, Variant, default_as

STUDY = Sweep(
    name="fig6",
    title="Learning under each prediction type",
    question="Does v-prediction earn the highest reward?",
    source="Fig. 6",
    variants=(
        Variant("v", "v", rows_of="table5b"),
        Variant("ε", "epsilon", rows_of="table5b"),
        default_as("x0"),
    ),
    orders=(Order("v", "ε"), Order("v", "x0")),
    live=False,
).study()
