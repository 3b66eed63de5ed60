"""An adapter on its model: steps that suit its weights, and what each prefix is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from rankcast.adapters.arrays import load_tensors
from rankcast.adapters.fingerprint import base_fingerprint, check_base, logits_fingerprint
from rankcast.codec.coded_levels import CodedLevels
from rankcast.codec.container import Container
from rankcast.codec.feedback import CurvedAdapter, best_within
from rankcast.codec.formats.peft_names import beyond_lora
from rankcast.codec.header import MEASURE, ChunkEntry, Measure
from rankcast.codec.packing import RELATIVE_STEPS, Source
from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.errors import ConfigError, InfeasibleDeadlineError, InfeasibleSizeError
from rankcast.learner.curvature import curvatures_of
from rankcast.learner.datasets import load_dataset, with_held_out
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.qat import coding_for, learner_for
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.gain import GainSearch, Way
from rankcast.packaging.measured_levels import measure_levels
from rankcast.packaging.texts import LevelTexts, Texts
from rankcast.presets import load_preset

Fit = Callable[[Source, float | None], Container]
"""Packs within a number of bits."""
_LONGEST = {"loss": 9.99999, "accuracy": 1.0}
"""Of the worth of a prefix, as a rule: 3 bytes each."""
_LONGEST_TEXT = 512
"""Tokens of a language model's texts."""


@dataclass(frozen=True, eq=False)
class AdapterSetup:
    """An adapter, how its model trains, and the texts that it is judged on."""

    source: Source
    config: FinetuneConfig
    splits: DatasetSplits

    def learner(self) -> TransformerLearner:
        """Return the model with the adapter on it.

        Raises:
            ModelError: another base model than the adapter was made for.
        """
        learner = learner_for(self.source.tensors, self.config, self.splits)
        self.check(learner)
        return learner

    @property
    def measure(self) -> Measure:
        """What prefixes are measured by: the loss of all tokens says little of an adapter."""
        causal = self.config.objective == "causal"
        return "divergence" if causal and self.splits.train.answered is None else "loss"

    def unrounded(self) -> tuple[float, float | None]:
        """Return loss [nats] and accuracy of the adapter as it is, on the validation texts.

        A divergence from itself is 0.

        Raises:
            DataError: texts without labels, for a classifier.
            ModelError: another base model than the adapter was made for.
        """
        if self.measure == "divergence":
            return 0.0, None
        seen = self.learner().evaluate("validation")
        return seen.loss, seen.accuracy

    def check(self, learner: TransformerLearner) -> None:
        """Raise unless a learner's model is the one that the adapter was made for.

        Raises:
            ModelError: another one.
        """
        check_base(learner.adapter.model, self.source.base.fingerprint, self.source.base.name)


def setup_for(source: Source, folder: Path | None, texts: Texts) -> AdapterSetup:
    """Return what is needed to run an adapter.

    Args:
        source: the adapter.
        folder: that it was read from; a run knows its model and texts. None if it was in memory.
        texts: for any other adapter; replaces what a run knows.

    Raises:
        ConfigError: model or texts are not known, or an adapter that the training code cannot hold.
        DataError: the texts cannot be read.
    """
    more = beyond_lora(source.tensors)
    if more is not None:
        raise ConfigError(
            f"Only plain low-rank adapters can be measured or trained, and this one is {more}. "
            f"Pack it without --measure and --texts, and without qat."
        )
    near = () if folder is None else (folder, folder.parent)
    settings = next((p / "config.yaml" for p in near if (p / "config.yaml").is_file()), None)
    if settings is not None:
        run = load_preset(str(settings))
        config, data = run.finetune, run.data
        if texts.base_model is not None:
            config = replace(config, model=texts.base_model)
    else:
        config, data = _foreign_config(source, folder, texts), DatasetConfig()
    data = texts.data(data, config.objective)
    splits = load_dataset(data)
    if texts.held_out is not None:
        splits = with_held_out(splits, data, texts.held_out)
    return AdapterSetup(source, texts.sizes(config), splits)


def pack_measured(
    setup: AdapterSetup,
    fits: Sequence[Fit],
    budget_bits: float | None,
    levels: LevelTexts | None = None,
) -> Container:
    """Return a container whose header says what its prefixes are worth; see `measured`.

    Args:
        setup: the adapter; its steps become coarser where weights matter less, unless it knows
            better ones.
        fits: pack a `Source` within a number of bits, or None. Of several the file with the lowest
            loss is taken, and all but the first may find that none fits.
        budget_bits: of the whole file, measurements included; None for no budget.
        levels: how to measure levels and curvature for two files more, see `measured_levels` and
            `rankcast.codec.feedback`. An adapter that was trained to be rounded keeps the steps
            that it was trained for.

    Raises:
        DataError: texts without labels, for a classifier.
        ModelError: another base model than the adapter was made for.
        RankcastError: as the first of `fits`.
    """
    learner, source = setup.learner(), setup.source
    unrounded = AdapterSnapshot(learner.adapter)
    whole = unrounded if setup.measure == "divergence" else None
    if not source.offsets:
        source = replace(source, offsets=coding_for(learner, RELATIVE_STEPS["good"]).offsets)
    if budget_bits is None:
        return measured(fits[0](source, None), learner, whole)
    better, best = partial(_better, learner, budget_bits, whole), None
    if levels is None or source.coding is not None or not source.tensors.ranks.any():
        for fit in fits:
            best = better(best, partial(fit, source))
        assert best is not None  # the first fits, or raises
        return best
    (n_texts, n_curvature), on_pass = levels.of(setup.config.objective), levels.on_pass
    search = GainSearch(learner, unrounded, on_pass=on_pass)
    at_both_gains = partial(_at_both_gains, better, search, budget_bits)
    scaled = lru_cache(maxsize=2)(source.scaled)
    for fit in fits:
        best = at_both_gains(best, lambda gain, bits, fit=fit: fit(scaled(gain), bits))
    assert best is not None  # the first fits, or raises
    if n_texts:
        coded, near = CodedLevels.near(source, budget_bits), best.tensors()
        known = measure_levels(learner, unrounded, coded, near, n_texts=n_texts, on_pass=on_pass)
        best = at_both_gains(best, lambda gain, bits: known.scaled(gain).file(bits))
    if n_curvature:
        load_tensors(learner.adapter, source.tensors)
        told = None if on_pass is None else partial(on_pass, "curvature")
        curvatures = curvatures_of(learner, n_curvature, told)
        with closing(CurvedAdapter(source, curvatures)) as curved:
            best = at_both_gains(best, lambda gain, bits: best_within(curved, bits, gain))
    return best


def _at_both_gains(
    better: Callable[[Container | None, Callable[[float], Container]], Container],
    search: GainSearch,
    budget_bits: float,
    best: Container | None,
    way: Way,
) -> Container:
    """Return the best of a file, one of the adapter, and one of it at the gain that suits."""
    way = lru_cache(maxsize=2)(way)  # asked again for the same size
    best = better(best, partial(way, 1.0))
    try:
        gain = search.suits(way, budget_bits)
    except (InfeasibleDeadlineError, InfeasibleSizeError):
        return best
    return best if gain == 1.0 else better(best, partial(way, gain))


def _better(
    learner: TransformerLearner,
    budget_bits: float,
    whole: AdapterSnapshot | None,
    best: Container | None,
    fit: Callable[[float], Container],
) -> Container:
    """Return the file of two with the lower loss as measured; the other may be impossible."""
    try:
        other = measured_within(fit, learner, budget_bits, whole)
    except (InfeasibleDeadlineError, InfeasibleSizeError):
        if best is None:
            raise
        return best
    if best is None:
        return other
    losses = [file.header.chunks[-1].loss or 0.0 for file in (best, other)]
    return best if losses[0] <= losses[1] else other


def measured_within(
    fit: Callable[[float], Container],
    learner: TransformerLearner,
    budget_bits: float,
    whole: AdapterSnapshot | None = None,
) -> Container:
    """Return a container within a budget whose header says what its prefixes are worth.

    Args:
        fit: packs an adapter within some bits.
        learner: see `measured`.
        budget_bits: of the whole file, measurements included.
        whole: see `measured`.

    Raises:
        DataError: texts without labels, for a classifier.
        InfeasibleSizeError: as `fit`, with the size that the smallest file has when measured.
        RankcastError: as `fit`.
    """
    reserve, smallest = 0.0, None
    while True:
        try:
            container = fit(budget_bits - reserve)
        except InfeasibleSizeError as error:
            container, smallest = fit(8.0 * error.smallest_bytes), error
        file = _longest(container, learner, whole)
        if file.n_bits <= budget_bits:  # measuring takes minutes
            file = measured(container, learner, whole)
        if file.n_bits <= budget_bits:
            return file
        if smallest is not None:
            sizes = file.n_bits // 8, int(budget_bits // 8)
            raise InfeasibleSizeError(*sizes, trainable=smallest.trainable) from smallest
        reserve += file.n_bits - budget_bits


def measured(
    container: Container, learner: TransformerLearner, whole: AdapterSnapshot | None = None
) -> Container:
    """Return a container whose header says what each prefix is worth on the validation texts.

    It also gains the fingerprints of the base model and of the logits of the whole adapter. The
    learner holds the decoded adapter afterwards.

    Args:
        container: to be measured.
        learner: with the model and the texts.
        whole: the adapter before it was coded: prefixes are measured by their divergence from it
            then, and the header says so. None measures the task's loss and accuracy.

    Raises:
        DataError: texts without labels, for a classifier.
    """
    entries = []
    for entry, (_, tensors) in zip(container.header.chunks, container.decoded(), strict=True):
        load_tensors(learner.adapter, tensors)
        if whole is not None:
            divergence = max(learner.divergence_from(whole, "validation"), 0.0)
            entries.append(replace(entry, loss=round(divergence, 5), accuracy=None))
            continue
        seen = learner.evaluate("validation")
        entries.append(replace(entry, loss=round(seen.loss, 5), accuracy=round(seen.accuracy, 5)))
    base = base_fingerprint(learner.adapter.model)
    return _described(container, learner, entries, base, whole is not None)


def _longest(
    container: Container, learner: TransformerLearner, whole: AdapterSnapshot | None
) -> Container:
    """Return a container as `measured` does, with stand-ins of the most bytes for what is measured.

    The learner holds the decoded adapter afterwards.
    """
    load_tensors(learner.adapter, container.tensors())
    known = _LONGEST if whole is None else _LONGEST | {"accuracy": None}
    longest = [replace(entry, **known) for entry in container.header.chunks]
    return _described(container, learner, longest, "0" * 64, whole is not None)


def _described(
    container: Container,
    learner: TransformerLearner,
    entries: Sequence[ChunkEntry],
    base: str,
    by_divergence: bool,
) -> Container:
    """Return a container with what is known of its chunks, its base model, and its logits now."""
    task = dict(container.header.task)
    header = replace(
        container.header,
        base=replace(container.header.base, fingerprint=base),
        chunks=tuple(entries),
        task=task | {MEASURE: "divergence"} if by_divergence else task,
        fingerprint=logits_fingerprint(learner.adapter.model),
    )
    return Container(header, container.chunks)


def _foreign_config(source: Source, folder: Path | None, texts: Texts) -> FinetuneConfig:
    """Return how the model of an adapter trains that is of no run of rankcast."""
    model = texts.base_model or source.base.name
    if model is None or texts.texts is None:
        raise ConfigError(
            f"{folder or 'This adapter'} is no run of rankcast, so its model and texts are not "
            f"known: name them with --base-model and --texts."
        )
    causal = source.task.get("task_type") == "CAUSAL_LM"
    return FinetuneConfig(
        model=model,
        max_length=_LONGEST_TEXT if causal else FinetuneConfig.max_length,
        objective="causal" if causal else "classification",
        train_pooler=any("pooler" in name for name in source.tensors.modules),
        orthogonality_weight=0.0,
    )
