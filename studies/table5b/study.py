"""Table V(b): what the denoiser predicts."""

from studies.shared.sweeps import Order, Sweep, Variant, default_as

STUDY = Sweep(
    name="table5b",
    title="What the denoiser predicts",
    question="Are v- and ε-prediction better than x0-prediction?",
    source="Table V(b)",
    variants=(
        Variant("v", "v", {"policy": {"diffusion": {"prediction": "v"}}}, 95.30),
        Variant("ε", "epsilon", {"policy": {"diffusion": {"prediction": "epsilon"}}}, 95.30),
        default_as("x0", 95.07),
    ),
    orders=(Order("v", "x0"), Order("ε", "x0")),
    note="10 inference steps, our default; the paper uses 30 to 100.",
).study()
