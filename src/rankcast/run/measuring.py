"""What each prefix of a file is worth, measured on the model, and steps that suit its weights."""

from __future__ import annotations

from dataclasses import replace

from rankcast.adapters.coding import load_tensors
from rankcast.adapters.fingerprint import base_fingerprint, logits_fingerprint
from rankcast.codec.container import Container
from rankcast.codec.packing import RELATIVE_STEPS
from rankcast.codec.stream import Decoder
from rankcast.finetune.finish import coding_for
from rankcast.finetune.transformer import TransformerLearner
from rankcast.run.containers import budget_of, packed
from rankcast.run.file_options import Pack
from rankcast.run.learners import workplace

RESERVE_BITS = 8 * 300
"""What measurements add to a header, at most, as a rule."""


def packed_and_measured(command: Pack) -> Container:
    """Return the container that the options ask for, with what its prefixes are worth.

    Raises:
        CodecError: no adapter, or one that cannot be carried.
        ConfigError: options that do not fit together; model or texts are not known.
        DataError: texts that cannot be read.
        InfeasibleDeadlineError: not even the coarsest step fits.
        ModelError: another base model than the adapter was made for.
    """
    budget = budget_of(command)  # before a model is loaded
    place = workplace(command.source, command)
    learner, source = place.learner(), place.source
    if not source.offsets:
        offsets = coding_for(learner, RELATIVE_STEPS["good"]).offsets
        source = replace(source, offsets=offsets)
    reserve = RESERVE_BITS
    while True:
        found = measured(packed(command, source, reserve), learner)
        excess = 0 if budget is None else 8 * len(found.to_bytes()) - budget
        if excess <= 0:
            return found
        reserve += int(excess) + 8


def measured(container: Container, learner: TransformerLearner) -> Container:
    """Return a container whose header says what each prefix is worth on the validation texts.

    It also gains the fingerprints of the base model and of the logits of the whole adapter. The
    learner holds the decoded adapter afterwards.

    Raises:
        DataError: texts without labels, for a classifier.
    """
    decoder, entries = Decoder(container.header), []
    for chunk, entry in zip(container.chunks, container.header.chunks, strict=True):
        decoder.add(chunk)
        load_tensors(learner.adapter, decoder.tensors())
        seen = learner.evaluate("validation")
        entries.append(replace(entry, loss=round(seen.loss, 5), accuracy=round(seen.accuracy, 5)))
    model = learner.adapter.model
    base = replace(container.header.base, fingerprint=base_fingerprint(model))
    header = replace(
        container.header, base=base, chunks=tuple(entries), fingerprint=logits_fingerprint(model)
    )
    return Container(header, container.chunks)
