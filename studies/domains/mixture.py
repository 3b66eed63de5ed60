"""One adapter for a mixture of domains: its texts, its classes, and how it is trained.

A class of one domain is none of another's, and the classifier learns to choose among all of them.
Each batch is of one domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.errors import DataError
from rankcast.learner.batching import BucketedBatches
from rankcast.learner.datasets import load_dataset
from rankcast.learner.texts import DatasetSplits, TextDataset, load_docstrings
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray
from rankcast.training.folder import load_state, save_state

DOCSTRINGS = "docstrings"
CHECKPOINT_EVERY = 25


@dataclass(frozen=True)
class MixtureSettings:
    """The texts of a mixture and the training on them.

    Attributes:
        domains: folders of data sets, `docstrings`, or `docstrings/` and packages joined by `+`.
        model: as `FinetuneConfig.model`.
        rank: largest rank of the adapter.
        steps: of training.
        batch_size: texts of a step.
        max_length: tokens at which texts are cut.
        n_train: texts of each domain to train on, or as many as there are.
        n_measured: held-out texts of each domain on which gains are measured.
        n_judged: other held-out texts of each domain on which plans are judged.
    """

    domains: tuple[str, ...] = ("sst2", "agnews", DOCSTRINGS)
    model: str = "minilm"
    rank: int = 8
    steps: int = 1000
    batch_size: int = 16
    max_length: int = 32
    n_train: int = 5000
    n_measured: int = 240
    n_judged: int = 300


@dataclass(frozen=True)
class Mixture:
    """Texts of several domains under the classes of all of them.

    Attributes:
        splits: to train on, to measure on (`validation`) and to judge on (`test`). Texts of a
            domain follow one another, as many of each domain in each of the last two.
        training_domains: (n,) domain of each text to train on.
        class_domains: (C,) domain of each class.
        n_domains: how many domains there are.
    """

    splits: DatasetSplits
    training_domains: IntArray
    class_domains: IntArray
    n_domains: int

    def domain_of(self, split: str) -> IntArray:
        """Return (n,) domain of each text of `validation` or `test`."""
        each = len(self.splits[split]) // self.n_domains
        return np.repeat(np.arange(self.n_domains), each)


def mixture_of(settings: MixtureSettings, data: Path | None) -> Mixture:
    """Return the texts of a mixture, the same for all seeds.

    Raises:
        DataError: the data folder is not known, lacks a domain, or has too few held-out texts.
    """
    parts = [_domain(name, data) for name in settings.domains]
    names = tuple(
        f"{domain}: {label}"
        for domain, part in zip(settings.domains, parts, strict=True)
        for label in part.train.label_names
    )
    starts = [0, *accumulate(part.train.n_labels for part in parts)]
    train, measured, judged = [], [], []
    for name, part, start in zip(settings.domains, parts, starts, strict=False):
        own = _held_out(part, name, settings.n_measured + settings.n_judged)
        few = part.train.sample(settings.n_train, 0)
        measured.append((own.subset(range(settings.n_measured)), start))
        judged.append((own.subset(range(settings.n_measured, len(own))), start))
        train.append((few, start))
    splits = DatasetSplits(*(_joined(split, names) for split in (train, measured, judged)))
    domains = np.repeat(np.arange(len(parts)), [len(few) for few, _ in train])
    classes = np.repeat(np.arange(len(parts)), [part.train.n_labels for part in parts])
    return Mixture(splits, domains, classes, len(parts))


def _held_out(part: DatasetSplits, name: str, size: int) -> TextDataset:
    """Return held-out texts in random order, none of them twice or among those to train on."""
    seen = set(part.train.texts)
    pool = _joined([(part.validation, 0), (part.test, 0)], part.train.label_names)
    first = {text: i for i, text in reversed(list(enumerate(pool.texts))) if text not in seen}
    if len(first) < size:
        raise DataError(f"{name} has {len(first)} held-out texts, this study asks for {size}.")
    kept = sorted(first.values())
    return pool.subset([kept[i] for i in np.random.default_rng(0).permutation(len(kept))[:size]])


def _domain(name: str, data: Path | None) -> DatasetSplits:
    """Return the texts of a domain with classes of its own."""
    source, _, packages = name.partition("/")
    if source == DOCSTRINGS:
        whole = load_docstrings()
        chosen = packages.split("+") if packages else list(whole.train.label_names)
        return DatasetSplits(
            *(_of_classes(part, chosen) for part in (whole.train, whole.validation, whole.test))
        )
    if data is None or not (data / source).is_dir():
        raise DataError(
            f"This study trains on {source}, which is not in {data}. Name the folder that holds "
            f"{source}/train.tsv with --data, or set RANKCAST_DATA."
        )
    config = DatasetConfig(source=str(data / source), text_column="sentence", label_column="label")
    return load_dataset(config)


def _of_classes(texts: TextDataset, chosen: Sequence[str]) -> TextDataset:
    """Return the texts of some classes, under these classes alone."""
    number = {texts.label_names.index(name): i for i, name in enumerate(chosen)}
    labels = texts.labels or ()
    kept = [i for i, label in enumerate(labels) if label in number]
    own = tuple(number[labels[i]] for i in kept)
    return TextDataset(tuple(texts.texts[i] for i in kept), own, tuple(chosen))


def _joined(parts: Sequence[tuple[TextDataset, int]], names: tuple[str, ...]) -> TextDataset:
    """Return parts one after another, the classes of each numbered from its start."""
    texts = tuple(text for part, _ in parts for text in part.texts)
    labels = tuple(start + label for part, start in parts for label in part.labels or ())
    return TextDataset(texts, labels, names)


class OneDomainBatches(BucketedBatches):
    """Batches of which each is of one domain, all domains as often.

    Args:
        domains: (n,) domain of each text.
        lengths: (n,) tokens of each text.
        batch_size: texts of a batch.
        seed: of the order.
    """

    def __init__(self, domains: IntArray, lengths: IntArray, batch_size: int, seed: int) -> None:
        self._texts = [np.flatnonzero(domains == d) for d in range(int(domains.max()) + 1)]
        super().__init__(lengths, min(batch_size, *map(len, self._texts)), seed)

    def _shuffle(self, epoch: int) -> list[IntArray]:
        """Return the batches of an epoch: of each domain as many as the smallest has."""
        rng = np.random.default_rng([self._seed, epoch])
        size, n = self.batch_size, min(map(len, self._texts))
        batches: list[IntArray] = []
        for texts in self._texts:
            batches.extend(rng.permutation(texts)[: n // size * size].reshape(-1, size))
        return [batches[i] for i in rng.permutation(len(batches))]


class MixtureLearner(TransformerLearner):
    """A learner whose batches are of one domain at a time.

    Args:
        config: the model and how it is trained.
        mixture: what it learns from.
    """

    def __init__(self, config: FinetuneConfig, mixture: Mixture) -> None:
        super().__init__(config, mixture.splits)
        lengths = self._splits["train"].lengths
        self._batches = OneDomainBatches(
            mixture.training_domains, lengths, config.batch_size, config.seed
        )


def config_of(settings: MixtureSettings, seed: int, *, in_bfloat16: bool) -> FinetuneConfig:
    """Return how the adapter trains: every prefix of its components, as for the real tasks."""
    return FinetuneConfig(
        model=settings.model,
        r_max=settings.rank,
        alpha=float(settings.rank),
        lr=2e-3,
        warmup_steps=min(50, settings.steps),
        total_steps=settings.steps,
        batch_size=settings.batch_size,
        orthogonality_weight=0.0,
        nested_prob=1.0,
        nested_levels="spread",
        max_length=settings.max_length,
        measure_reference=False,
        mixed_precision="bf16" if in_bfloat16 else "no",
        seed=seed,
    )


def train_to_end(learner: MixtureLearner, checkpoint: Path) -> MixtureLearner:
    """Train to the end of the schedule, resuming from a checkpoint; return the learner."""
    if checkpoint.is_file():
        learner.load_state_dict(load_state(checkpoint)["learner"])
    learner.apply(np.full((1, learner.layout.n_projections), learner.layout.r_max))
    while learner.n_steps < learner.config.total_steps:
        learner.train_step()
        done = learner.n_steps == learner.config.total_steps
        if done or learner.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, {"learner": learner.state_dict()})
    return learner
