"""Fig. 6: learning curves under each prediction type; the rows are Table V(b)'s."""

from rankcast.experiment.sweeps import Order, Sweep, Variant, default_as

EXPERIMENT = Sweep(
    name="fig6",
    title="Learning under each prediction type",
    question="Does v-prediction earn the highest reward?",
    source="Fig. 6",
    variants=(
        Variant("v", "v", borrowed="table5b"),
        Variant("ε", "epsilon", borrowed="table5b"),
        default_as("x0"),
    ),
    orders=(Order("v", "ε"), Order("v", "x0")),
    live=False,
).experiment()
