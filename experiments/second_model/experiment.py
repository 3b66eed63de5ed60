"""A decoder on SST-2: do the findings hold with another architecture?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rankcast.experiment.second import BUILT, Second
from rankcast.experiment.second_pipeline import SecondSettings
from rankcast.experiment.second_readouts import present as present_second
from rankcast.experiment.small_decoder import DecoderConfig, shared_decoder
from rankcast.experiment.spec import Experiment, Presentation, Result, RunContext
from rankcast.experiment.tasks import AGNEWS, SST2

STEPS = 1000
DECODER = DecoderConfig()
QUICK_DECODER = replace(DECODER, steps=4, vocabulary=1000)
TASK = replace(SST2, n_probe=1000, finetune=replace(SST2.finetune, alpha=32.0))
"""At the scale that suits MiniLM, 8, this decoder learned too slowly in a trial of another seed."""
NOTE = (
    f"SST-2; an OPT of {DECODER.layers} layers of width {DECODER.width} with MiniLM's word "
    f"embeddings, pre-trained by us for {DECODER.steps} steps of "
    f"{DECODER.batch_size * DECODER.window:,} tokens, which takes minutes, on the training texts "
    "of SST-2 and AG News without labels: far smaller and far less trained than the paper's "
    "OPT-1.3B; what counts is how the methods compare. "
    f"{STEPS} steps for the nested training and for AdaLoRA alike, at scale 32; learning rates "
    "were chosen with MiniLM and taken over. All seeds share one pre-trained decoder."
)


def build_model(context: RunContext) -> Path:
    """Return the folder of the decoder that all seeds share."""
    texts = [text for task in (SST2, AGNEWS) for text in task.splits(context.data).train.texts]
    config = QUICK_DECODER if context.scale == "quick" else DECODER
    shared = context.scratch.parent / "decoder"
    return shared_decoder(shared, texts, config, context.scratch / "decoder.pt")


STUDY = Second(
    TASK,
    SecondSettings(BUILT, STEPS, texts_per_plan=160),
    paper_model="facebook/opt-1.3b",
    build_model=build_model,
)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show AirLLM beside its rivals."""
    del inputs
    return present_second(result, "SST-2, small OPT", NOTE)


EXPERIMENT = Experiment(
    name="second_model",
    title="A second architecture",
    question="How accurate is AirLLM beside its rivals when the model is a decoder?",
    source="ours",
    jobs=STUDY.jobs,
    run=STUDY.run,
    present=present,
    live=True,
)
