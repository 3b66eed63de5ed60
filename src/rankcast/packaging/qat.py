"""Quantization-aware training of an adapter in a folder: resumable, judged as it will be coded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rankcast.adapters.arrays import load_tensors, tensors_of
from rankcast.adapters.export import save_adapter
from rankcast.codec.container import pack_at_exponent
from rankcast.codec.packing import Coding, Source
from rankcast.config.codec import CodecConfig
from rankcast.errors import CheckpointError
from rankcast.learner.byte_budget import ByteBudgetTraining, packer, small_steps, usual_training
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.protocol import Evaluation
from rankcast.learner.qat import QatConfig, learner_for, prepare_qat, run_qat
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.measure import setup_for
from rankcast.packaging.pack import read_adapter
from rankcast.packaging.texts import Texts
from rankcast.training.byte_run import SizedAdapter, SizedTraining, SizeRow
from rankcast.training.folder import load_state, save_state

CHECKPOINT_EVERY = 50
CHECKPOINT = "unfinished.pt"


@dataclass(frozen=True)
class QatResult:
    """Outcome of the training, on texts that were not trained on.

    Attributes:
        n_bits: of the file that `rankcast pack` makes of the adapter.
        float32_bits: of the adapter before, in float32.
        before: the adapter as it was.
        after: the adapter as decoded from that file.
        n_cut: texts to judge by whose answer was too long and lost its end.
    """

    n_bits: int
    float32_bits: int
    before: Evaluation
    after: Evaluation
    n_cut: int = 0


def train_on_rounded_weights(
    adapter: Path,
    output: Path,
    config: QatConfig,
    texts: Texts,
    on_step: Callable[[int, float], bool] = lambda step, loss: False,  # noqa: ARG005
) -> QatResult | None:
    """Train an adapter on rounded weights and write it where `rankcast pack` finds it.

    What was trained is kept in `output` every `CHECKPOINT_EVERY` steps and when training stops;
    the same call goes on from there.

    Args:
        adapter: folder of a run or of an adapter.
        output: folder to write.
        config: how to train.
        texts: where the folder does not name texts and model.
        on_step: called after each step with the number of those that are done and the loss;
            training stops when it returns True.

    Returns:
        None if it was stopped before the end.

    Raises:
        CheckpointError: `output` holds a checkpoint of other settings.
        RankcastError: adapter, model or texts cannot be had, or training diverged.
    """
    setup = setup_for(read_adapter(adapter), adapter, texts)
    checkpoint = output / CHECKPOINT
    settings = {"source": str(adapter.resolve()), **asdict(config)}
    state = _interrupted(checkpoint, settings)
    coding = None if state is None else Coding(state["exponent"], tuple(state["offsets"]))
    learner, coding = prepare_qat(setup.source.tensors, setup.config, setup.splits, config, coding)
    setup.check(learner)
    before = learner.evaluate("validation")
    if state is not None:
        learner.load_state_dict(state["learner"])

    def after_step(loss: float) -> bool:
        stop = on_step(learner.n_steps, loss)
        if stop or learner.n_steps % CHECKPOINT_EVERY == 0:
            output.mkdir(parents=True, exist_ok=True)
            steps = {"exponent": coding.exponent, "offsets": coding.offsets}
            kept = {"learner": learner.state_dict(), "settings": settings, **steps}
            save_state(checkpoint, kept)
        return stop

    if not run_qat(learner, after_step):
        return None
    save_adapter(learner.adapter, output, coding=coding)
    checkpoint.unlink(missing_ok=True)
    return _judged(learner, setup.source, coding, before)


@dataclass(frozen=True, slots=True)
class SizeConfig:
    """How an adapter trains for a file of a given size.

    Attributes:
        codec: the size, and how weights come to be rounded.
        steps: of training.
        lr: learning rate of the steps before rounding.
        distil: train towards the answers that the adapter gave before, not towards the labels.
    """

    codec: CodecConfig
    steps: int = 400
    lr: float = 1e-3
    distil: bool = True


def train_to_size(
    adapter: Path,
    output: Path,
    config: SizeConfig,
    texts: Texts,
    on_step: Callable[[SizeRow], bool] = lambda row: False,  # noqa: ARG005
) -> SizedAdapter | None:
    """Train an adapter so that its file has at most so many bytes.

    Components beyond the rank that suits the size are left out first. The file that
    `rankcast pack` makes of what is written to `output` has that size. Interruptions are as with
    `train_on_rounded_weights`.

    Args:
        adapter: folder of a run or of an adapter.
        output: folder to write.
        config: the size, and how to train for it.
        texts: where the folder does not name texts and model.
        on_step: called after each step; training stops when it returns True.

    Returns:
        None if it was stopped before the end.

    Raises:
        CheckpointError: `output` holds a checkpoint of other settings.
        InfeasibleSizeError: even a file without any weights is larger.
        RankcastError: adapter, model or texts cannot be had, or training diverged.
    """
    setup = setup_for(read_adapter(adapter), adapter, texts)
    checkpoint = output / CHECKPOINT
    settings = {"source": str(adapter.resolve()), **asdict(config)}
    state = _interrupted(checkpoint, settings)
    first = small_steps(config.codec, config.steps)
    usual = usual_training(replace(setup.config, lr=config.lr), config.codec, first)
    learner = learner_for(setup.source.tensors, usual, setup.splits)
    setup.check(learner)
    before = learner.evaluate("validation") if state is None else None
    if config.distil:
        learner.learn_from([AdapterSnapshot(learner.adapter)])
    pack, most = packer(learner, setup.source.base), learner.adapter.ranks
    training = ByteBudgetTraining(learner, config.codec, config.steps, pack, most)
    run = SizedTraining(training, checkpoint, {"settings": settings}, before)
    if state is not None:
        run.load(state)
    while training.n_steps < config.steps:
        stop = on_step(run.step())
        if stop or training.n_steps % CHECKPOINT_EVERY == 0:
            run.save()
        if stop and training.n_steps < config.steps:
            return None
    found = run.finish(output)
    checkpoint.unlink(missing_ok=True)
    return found


def _interrupted(checkpoint: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a training that was interrupted, if there is one.

    Raises:
        CheckpointError: it is of other settings.
    """
    if not checkpoint.is_file():
        return None
    state = load_state(checkpoint)
    if state["settings"] != dict(settings):
        raise CheckpointError(
            f"{checkpoint} is of a training with other settings ({state['settings']}). Give those, "
            f"another --output, or remove the file."
        )
    return state


def _judged(
    learner: TransformerLearner, source: Source, coding: Coding, before: Evaluation
) -> QatResult:
    """Return what the adapter is worth once it has been coded."""
    tensors = tensors_of(learner.adapter)
    coded = Source(tensors, source.base, source.task).at(coding)
    container = pack_at_exponent(coded, coding.exponent)
    load_tensors(learner.adapter, container.tensors())
    after = learner.evaluate("validation")
    n_cut = learner.n_cut("validation")
    return QatResult(container.n_bits, 32 * source.tensors.n_params, before, after, n_cut)
