"""The texts of both tasks as prompts with answers: to learn from, to tune on, to be judged on."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.config.learner import FinetuneConfig
from rankcast.files import only_one, put_file
from rankcast.learner.batching import TokenisedDataset, tokenise
from rankcast.learner.conversations import Completion
from rankcast.learner.texts import DatasetSplits, TextDataset
from rankcast.records import FloatArray, IntArray
from studies.harness.store import fingerprint
from studies.llm.docstrings import Docstring, harvest, split
from studies.shared.tasks import LiveTask

DOCSTRINGS, SST2 = "docstrings", "sst2"
TITLES = {DOCSTRINGS: "Docstrings", SST2: "SST-2"}
SHORTEST_ANSWER, LONGEST_ANSWER = 20, 64
"""Tokens of a docstring, its end included."""
LONGEST_PROMPT = 120
_SST2_TASK = LiveTask("sst2-answers", "sst2", 0, 3000, FinetuneConfig(), by_sentence=True)
_WORDS = ("negative", "positive")


@dataclass(frozen=True)
class Sizes:
    """How many texts a task has.

    Attributes:
        judged: answers to judge.
        tuning: answers to tune on.
        train: texts to learn from at most; None for all.
        packages: whose docstrings are read.
        most_tokens: of a text.
        shortest_answer: tokens of a docstring at least, its end included.
    """

    judged: int
    tuning: int
    train: int | None
    packages: tuple[str, ...]
    most_tokens: int
    shortest_answer: int = SHORTEST_ANSWER

    def to_plain(self) -> dict[str, Any]:
        """Return them as they stand in settings of jobs."""
        return {
            "judged": self.judged,
            "tuning": self.tuning,
            "train": self.train,
            "packages": list(self.packages),
            "most_tokens": self.most_tokens,
            "shortest_answer": self.shortest_answer,
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Sizes:
        """Return what `to_plain` was made of."""
        return cls(**{**plain, "packages": tuple(plain["packages"])})


@dataclass(frozen=True)
class TaskTexts:
    """The texts of a task.

    Attributes:
        splits: prompts with answers; `validation` is what is tuned on, `test` is judged.
        groups: (n,) module or sentence of each judged text, by which intervals resample.
        digest: of all texts, by which rows of other texts are told apart.
    """

    splits: DatasetSplits
    groups: IntArray
    digest: str

    def first(self, part: str, n: int) -> TaskTexts:
        """Return the first n texts of a part, and all of the others."""
        few = {part: self.splits[part].subset(range(min(n, len(self.splits[part]))))}
        groups = self.groups[:n] if part == "test" else self.groups
        return replace(self, splits=replace(self.splits, **few), groups=groups)

    def tokens(self, part: str, tokenizer: Any, most_tokens: int) -> TokenisedDataset:
        """Return a part as tokens.

        Args:
            part: `train`, `validation` or `test`.
            tokenizer: of the model.
            most_tokens: of a text.
        """
        return tokenise(self.splits[part], tokenizer, most_tokens)


def docstrings_of(packages: Sequence[str], kept: Path) -> list[Docstring]:
    """Return all docstrings of packages, read once for all jobs of this environment.

    Args:
        packages: their names.
        kept: folder for what was read.

    Raises:
        DataError: one is not installed.
    """
    key = fingerprint({"packages": [[name, _version(name)] for name in packages]})
    file = kept / f"{key}.json"
    with only_one(file.with_suffix(".lock"), "reading docstrings", wait=True):
        if not file.is_file():
            rows = [[d.module, d.prompt, d.answer] for d in harvest(packages)]
            put_file(file, json.dumps(rows).encode())
    return [Docstring(*row) for row in json.loads(file.read_text("utf-8"))]


def _version(package: str) -> str:
    """Return the version of a package whose distribution has its name; empty if it has another."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def docstring_texts(found: Sequence[Docstring], sizes: Sizes, tokenizer: Any) -> TaskTexts:
    """Return docstrings whose answers have so many tokens, shared out.

    Raises:
        DataError: they are too few.
    """
    lengths = [
        [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for texts in ([d.answer for d in found], [d.prompt for d in found])
    ]
    fitting = [
        one
        for one, answer, prompt in zip(found, *lengths, strict=True)
        if sizes.shortest_answer <= answer <= LONGEST_ANSWER and prompt <= LONGEST_PROMPT
    ]
    shared = split(fitting, sizes.judged, sizes.tuning)
    train = shared.train
    if sizes.train is not None and sizes.train < len(train):
        chosen = np.random.default_rng(0).choice(len(train), sizes.train, replace=False)
        train = tuple(train[i] for i in sorted(chosen.tolist()))
    modules = [d.module for d in shared.judged]
    groups = np.unique(modules, return_inverse=True)[1].astype(np.int64)
    parts = [
        TextDataset.of_answers([Completion(d.prompt, d.answer) for d in part])
        for part in (train, shared.tuning, shared.judged)
    ]
    return TaskTexts(DatasetSplits(*parts), groups, _digest(parts))


def sst2_texts(sizes: Sizes, data: Path | None) -> TaskTexts:
    """Return SST-2 as sentences that are answered with a word.

    Raises:
        DataError: the data folder is not known or does not hold SST-2.
    """
    whole = _SST2_TASK.splits(data)
    wanted = (sizes.train, sizes.tuning, sizes.judged)
    splits = (whole.train, whole.validation, whole.test)
    parts = [as_answers(s.sample(n, 0)) for s, n in zip(splits, wanted, strict=True)]
    groups = np.arange(len(parts[2]))
    return TaskTexts(DatasetSplits(*parts), groups, _digest(parts))


def as_answers(texts: TextDataset) -> TextDataset:
    """Return labelled sentences as prompts, with the word of their label as the answer."""
    assert texts.labels is not None  # SST-2 has them in all of its splits
    return TextDataset.of_answers(
        [
            Completion(f"Review: {text.strip()}\nSentiment:", f" {_WORDS[label]}")
            for text, label in zip(texts.texts, texts.labels, strict=True)
        ]
    )


@lru_cache(maxsize=2)
def texts_of(task: str, sizes: Sizes, base: Path, kept: Path, data: Path | None) -> TaskTexts:
    """Return the texts of a task, read once for all jobs of a worker.

    Args:
        task: its name.
        sizes: how many.
        base: folder of the base model, whose tokenizer counts.
        kept: folder in which docstrings are kept.
        data: folder of the data sets.

    Raises:
        DataError: they are too few, or not there.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    if task == SST2:
        return sst2_texts(sizes, data)
    tokenizer = AutoTokenizer.from_pretrained(base)
    return docstring_texts(docstrings_of(sizes.packages, kept), sizes, tokenizer)


def _digest(parts: Sequence[TextDataset]) -> str:
    """Return the SHA-256 of prompts and answers, in their order."""
    found = hashlib.sha256()
    for part in parts:
        for row in part.answered or ():
            assert isinstance(row, Completion)
            found.update(json.dumps([row.prompt, row.completion]).encode())
        found.update(b"\n\n")
    return found.hexdigest()


def pack_numbers(values: FloatArray | IntArray) -> str:
    """Return (n,) numbers as float32 in text, so that paired statistics need only the rows."""
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def unpack_numbers(packed: str) -> NDArray[np.float64]:
    """Return what `pack_numbers` packed."""
    data = zlib.decompress(base64.b64decode(packed))
    return np.frombuffer(data, dtype="<f4").astype(np.float64)
