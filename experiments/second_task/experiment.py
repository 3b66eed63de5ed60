"""AG News: do the findings hold on another task?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rankcast.experiment.second import Second
from rankcast.experiment.second_pipeline import SecondSettings
from rankcast.experiment.second_readouts import present as present_second
from rankcast.experiment.spec import Experiment, Presentation, Result
from rankcast.experiment.tasks import AGNEWS

STEPS = 400
NOTE = (
    f"AG News, 4 classes; MiniLM; {STEPS} steps of {AGNEWS.finetune.batch_size} texts, cut at "
    f"{AGNEWS.finetune.max_length} tokens, for the nested training and for AdaLoRA alike. Learning "
    "rates and scales were chosen on SST-2 and taken over."
)
STUDY = Second(
    AGNEWS,
    SecondSettings("minilm", STEPS, texts_per_plan=128, total_gain=math.log(4)),
    paper_model="facebook/opt-1.3b",
)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show AirLLM beside its rivals."""
    del inputs
    return present_second(result, "AG News, MiniLM", NOTE)


EXPERIMENT = Experiment(
    name="second_task",
    title="A second task",
    question="How accurate is AirLLM beside its rivals on AG News, a task of four classes?",
    source="ours",
    jobs=STUDY.jobs,
    run=STUDY.run,
    present=present,
    live=True,
)
