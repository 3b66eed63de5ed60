"""Fig. 7: steps of diffusion in training and in sampling."""

from rankcast.experiment.sweeps import Order, Sweep, Variant

GRID = tuple((training, inference) for training in (600, 800, 1000) for inference in (30, 50, 100))


def label(training: int, inference: int) -> str:
    """Return the name of a setting."""
    return f"{training} training, {inference} inference steps"


EXPERIMENT = Sweep(
    name="fig7",
    title="Diffusion steps",
    question="Are 1,000 training steps and 50 inference steps best?",
    source="Fig. 7",
    variants=tuple(
        Variant(
            label(*steps),
            f"T{steps[0]}-{steps[1]}",
            {"policy": {"diffusion": {"training_steps": steps[0], "inference_steps": steps[1]}}},
            paper=95.30 if steps == (1000, 50) else None,
            episodes=60,
        )
        for steps in GRID
    ),
    orders=(
        Order(label(1000, 50), label(600, 50), "higher (bars, no number)"),
        Order(label(1000, 50), label(1000, 30), "higher (bars, no number)"),
        Order(label(1000, 100), label(1000, 50), "negligible gains (no number)"),
    ),
    seeds=(0, 1, 2),
    live=False,
    note="60 episodes. Judged by reward on the calibrated learner, because differences in "
    "accuracy would be far below what the judged texts resolve.",
).experiment()
