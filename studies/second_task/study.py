"""AG News: do the results hold on another task?"""

from __future__ import annotations

import math
from functools import partial

from studies.harness.spec import Study
from studies.shared.pipeline import Pipeline, PipelineSettings
from studies.shared.pipeline_presentation import present
from studies.shared.tasks import AGNEWS

STEPS = 400
NOTE = (
    f"AG News, 4 classes; MiniLM; {STEPS} steps of {AGNEWS.finetune.batch_size} texts, cut at "
    f"{AGNEWS.finetune.max_length} tokens, for the nested training and for AdaLoRA alike. Learning "
    "rates and scales were chosen on SST-2 and taken over."
)
PIPELINE = Pipeline(
    AGNEWS,
    PipelineSettings("minilm", STEPS, texts_per_plan=128, total_gain=math.log(4)),
    paper_model="facebook/opt-1.3b",
)


STUDY = Study(
    name="second_task",
    title="A second task",
    question="How accurate is AirLLM beside its rivals on AG News, a task of four classes?",
    source="ours",
    jobs=PIPELINE.jobs,
    run=PIPELINE.run,
    present=partial(present, what="AG News, MiniLM", note=NOTE),
    needs_data=True,
)
