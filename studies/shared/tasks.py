"""The live tasks: which texts a model is trained, probed and judged on, and the link they share.

Every seed of a task has the same pool of judged texts: validation, test, and a slice of the
training texts that is kept out of training, together with whatever contains it or lies within it.

Settings were chosen alike for AdaLoRA and for nested ranks: learning rates 1e-3 and 3e-3 (AdaLoRA)
or 1e-3 and 2e-3 (nested) for 400 steps of another seed, judged on SST-2's validation split.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.config.plain import to_plain
from rankcast.errors import DataError
from rankcast.learner.datasets import load_dataset
from rankcast.learner.texts import DatasetSplits, TextDataset
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.capacity import Awgn
from rankcast.records import FloatArray, IntArray
from rankcast.training.folder import load_state, save_state
from studies.harness.spec import RunContext

CHECKPOINT_EVERY = 100
QUICK_TEXTS = 200
SHORTEST_HELD_OUT = 10  # words; shorter phrases occur all over the training texts
SHORTEST_REMOVED = 4  # words


@dataclass(frozen=True, slots=True)
class LiveTask:
    """A data set and how its texts are shared out.

    Attributes:
        name: of the task.
        folder: of its tables below the data folder.
        n_held_out: training texts that join the judged pool.
        n_probe: training texts from which those are drawn on which plans are probed. Texts that
            overlap with them leave the training, too.
        finetune: model and training; the seed is set per run.
        first: how many of the training texts that could be kept out to pass over, so that two
            tasks can have other texts.
        by_sentence: keep out all long phrases of a sentence before those of another, so that few
            sentences lose their long phrases to the judged pool. Texts of one sentence are no
            independent draws: intervals resample the groups that `groups` returns.
    """

    name: str
    folder: str
    n_held_out: int
    n_probe: int
    finetune: FinetuneConfig
    first: int = 0
    by_sentence: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Return the task as it stands in a job's settings, so that a changed task is run anew.

        `first`, `by_sentence` and `pass_tokens` are left out where they are as before there were
        such settings.
        """
        plain = to_plain(self)
        for settings, name in (
            (plain, "first"),
            (plain, "by_sentence"),
            (plain["finetune"], "pass_tokens"),
        ):
            if not settings[name]:
                del settings[name]
        return plain

    def splits(self, data: Path | None) -> DatasetSplits:
        """Return train, probe (as `validation`) and the judged pool (as `test`).

        Raises:
            DataError: the data folder is not known or does not hold the task.
        """
        return self._shared_out(data)[0]

    def groups(self, data: Path | None) -> IntArray:
        """Return (n,) group of each judged text: equal where texts are of one sentence.

        Raises:
            DataError: as `splits`.
        """
        return self._shared_out(data)[1]

    def _shared_out(self, data: Path | None) -> tuple[DatasetSplits, IntArray]:
        if data is None or not (data / self.folder).is_dir():
            raise DataError(
                f"This study trains on {self.folder}, which is not in {data}. Name the folder "
                f"that holds {self.folder}/train.tsv with --data, or set RANKCAST_DATA."
            )
        return _held_out(
            data / self.folder, self.n_held_out, self.n_probe, self.first, self.by_sentence
        )

    def splits_for(self, context: RunContext) -> DatasetSplits:
        """Return the splits for a job: at the quick scale few texts to probe and to judge.

        Raises:
            DataError: as `splits`.
        """
        splits = self.splits(context.data)
        return fewer(splits, QUICK_TEXTS if context.scale == "quick" else None)


@lru_cache(maxsize=2)
def _held_out(
    folder: Path, n_held_out: int, n_probe: int, first: int, by_sentence: bool
) -> tuple[DatasetSplits, IntArray]:
    """Read a folder's tables and split them, once for all jobs of a worker."""
    config = DatasetConfig(source=str(folder), text_column="sentence", label_column="label")
    return hold_out(load_dataset(config), n_held_out, n_probe, first, by_sentence=by_sentence)


def fewer(splits: DatasetSplits, most: int | None) -> DatasetSplits:
    """Return the splits with at most so many texts to probe and to judge, always the same."""
    return DatasetSplits(
        splits.train, splits.validation.sample(most, 0), splits.test.sample(most, 0)
    )


def hold_out(
    whole: DatasetSplits,
    n_held_out: int,
    n_probe: int,
    first: int = 0,
    *,
    by_sentence: bool = False,
) -> tuple[DatasetSplits, IntArray]:
    """Keep a slice of the training texts out of training; see `LiveTask`.

    Returns:
        The splits, and (n,) group of each judged text. With `by_sentence` the texts of a sentence
        are one group and follow one another; every other text is a group of its own.
    """
    texts = whole.train.texts
    sentence: Sequence[int] = range(len(texts))
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    if by_sentence:
        sentence = sentences_of(texts)
        place = {index: at for at, index in enumerate(order)}
        order.sort(key=lambda i: (place[sentence[i]], place[i]))
    long = [i for i in order if len(texts[i].split()) >= SHORTEST_HELD_OUT][first:]
    held, probe = long[:n_held_out], long[n_held_out : n_held_out + n_probe]
    away = [texts[i].strip() for i in (*held, *probe)]
    overlapping = _overlapping(texts, away)
    kept = [i for i in range(len(texts)) if i not in overlapping]
    pool = [whole.validation, whole.test, *([whole.train.subset(held)] if held else [])]
    n_others = len(whole.validation) + len(whole.test)
    groups = np.array([*range(n_others), *(n_others + sentence[i] for i in held)])
    judged = _joined(pool, whole.train.label_names)
    splits = DatasetSplits(whole.train.subset(kept), whole.train.subset(probe), judged)
    return splits, groups


def sentences_of(texts: Sequence[str]) -> list[int]:
    """Return for each text the longest text that it lies within: itself, where there is none.

    Where several longest texts contain it, it belongs to the first of them. Texts too short to be
    removed (`SHORTEST_REMOVED`) belong to themselves: they lie within many.
    """
    found = list(range(len(texts)))
    longest, starts, owners = "", [], []
    for i in sorted(found, key=lambda i: -len(texts[i].strip())):
        text = texts[i].strip()
        if len(text.split()) < SHORTEST_REMOVED:
            continue
        at = longest.find(text)
        if at >= 0:
            found[i] = owners[bisect_right(starts, at) - 1]
        else:
            starts.append(len(longest))
            owners.append(i)
            longest += text + "\n"
    return found


def _overlapping(texts: tuple[str, ...], away: list[str]) -> set[int]:
    """Return the indices of texts that lie within one of `away`, or contain one."""
    if not away:
        return set()
    haystack = "\n".join(away)
    inside = {
        i
        for i, text in enumerate(texts)
        if len(text.split()) >= SHORTEST_REMOVED and text.strip() in haystack
    }
    everything = "\n".join(texts)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    for phrase in away:
        at = everything.find(phrase)
        while at >= 0:
            inside.add(int(np.searchsorted(starts, at, side="right")) - 1)
            at = everything.find(phrase, at + 1)
    return inside


def _joined(parts: list[TextDataset], names: tuple[str, ...]) -> TextDataset:
    labels = tuple(y for part in parts for y in (part.labels or ()))
    return TextDataset(tuple(t for part in parts for t in part.texts), labels, names)


def train_to_end(
    learner: TransformerLearner, ranks: IntArray, checkpoint: Path
) -> TransformerLearner:
    """Train a learner to the end of its schedule, resuming from a checkpoint; return it.

    Args:
        learner: what to train.
        ranks: (N,) ranks, or (K, N) of which every step draws one.
        checkpoint: where it is kept.
    """
    if checkpoint.is_file():
        learner.load_state_dict(load_state(checkpoint)["learner"])
    plans = np.atleast_2d(ranks)
    while learner.n_steps < learner.config.total_steps:
        rng = np.random.default_rng([learner.config.seed, learner.n_steps, 1])
        learner.apply(plans[rng.integers(len(plans))][None])
        learner.train_step()
        done = learner.n_steps == learner.config.total_steps
        if done or learner.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, {"learner": learner.state_dict()})
    return learner


def full_ranks(learner: TransformerLearner) -> IntArray:
    """Return (N,) r_max for every projection."""
    return np.full(learner.layout.n_projections, learner.layout.r_max)


SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
STEPS = 800
FULL_RANK_AT_DB = 15.0
"""The bandwidth is such that rank 8 everywhere just arrives at this SNR [dB]."""
BITS_PER_PARAM = 32

_NESTED = FinetuneConfig(
    model="minilm",
    r_max=8,
    alpha=8.0,
    lr=2e-3,
    warmup_steps=50,
    total_steps=STEPS,
    batch_size=32,
    orthogonality_weight=0.0,
    nested_prob=1.0,
    nested_levels="spread",
    max_length=64,
    measure_reference=False,
    mixed_precision="no",
)
SST2 = LiveTask("sst2", "sst2", n_held_out=2310, n_probe=3000, finetune=_NESTED)
SST2_CODES = LiveTask(
    "sst2-codes", "sst2", n_held_out=4400, n_probe=1500, finetune=_NESTED, first=5310
)
"""More judged texts, and others than those on which SST2 is judged and probed."""
AGNEWS = LiveTask(
    "agnews",
    "agnews",
    n_held_out=0,
    n_probe=1000,
    finetune=replace(_NESTED, batch_size=16, max_length=32),
)
"""Its texts are longer than SST-2's: title and lead begin within 32 tokens."""
_ONE_BUDGET = replace(_NESTED, total_steps=1000, weight_decay=0.0, alpha=None)
"""What every method of the byte frontier gets, whatever its learning rate."""
SST2_FRONTIER = LiveTask(
    "sst2-frontier",
    "sst2",
    n_held_out=4400,
    n_probe=3000,
    finetune=_ONE_BUDGET,
    by_sentence=True,
)
"""Whole sentences are kept out: texts to train on are as long as with all of SST-2."""
AGNEWS_FRONTIER = LiveTask(
    "agnews-frontier",
    "agnews",
    n_held_out=1000,
    n_probe=600,
    finetune=replace(_ONE_BUDGET, total_steps=400, max_length=32),
)
"""Its data have 7,600 rows: 3,999 train, 600 are for tuning, 3,000 are judged."""
TASKS = {task.name: task for task in (SST2, SST2_CODES, AGNEWS, SST2_FRONTIER, AGNEWS_FRONTIER)}


def share_of_full_rank(snr_db: float) -> float:
    """Return what share of r_max everywhere arrives in time at an SNR [dB]."""
    rates: FloatArray = Awgn().spectral_efficiency(np.array([snr_db, FULL_RANK_AT_DB]))
    return float(rates[0] / rates[1])
