"""The texts of the decoder study: nothing of one side of a split is known from another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rankcast.errors import DataError
from rankcast.learner.texts import TextDataset
from studies.llm import docstrings, texts
from studies.llm.docstrings import (
    MOST_OF_MODULE,
    Docstring,
    first_sentence,
    harvest,
    normalised,
    of_source,
    shingles,
    split,
)
from studies.llm.texts import (
    Sizes,
    as_answers,
    docstring_texts,
    docstrings_of,
    pack_numbers,
    unpack_numbers,
)

SOURCE = '''
"""A module, which is not asked for."""


class Box(Base):
    """Hold things of many kinds until somebody comes and asks for them.

    More of it.
    """

    def put(self, thing: int = 3) -> None:
        """Put a thing into the box
        so that it is there when it is needed again."""

    def _hidden(self):
        """Say nothing to anybody, because this is nobody's business at all."""

    class Inner:
        """A class within a class has a head too, and no one outside of it."""


def short():
    """Too short."""


def listed():
    """Take a lot of parameters and return: Args: a few that nobody has counted."""


async def fetch(url, *, tries=2):
    """Fetch a page from somewhere far away, more than once if that is needed."""
'''


def test_prompts_are_where_a_docstring_stands(tmp_path: Path) -> None:
    file = tmp_path / "box.py"
    file.write_text(SOURCE, "utf-8")
    found = list(of_source("lib.box", file))
    assert [one.prompt for one in found] == [
        '# lib.box\nclass Box(Base):\n    """',
        '# lib.box\nclass Box(Base):\n    def put(self, thing: int=3) -> None:\n        """',
        '# lib.box\nclass Box(Base):\n    class Inner:\n        """',
        '# lib.box\ndef fetch(url, *, tries=2):\n    """',
    ]
    assert found[0].answer == "Hold things of many kinds until somebody comes and asks for them."
    assert found[1].answer.endswith("box so that it is there when it is needed again.")


def test_what_is_not_python_has_no_docstrings(tmp_path: Path) -> None:
    file = tmp_path / "template.py"
    file.write_text('{{ name }} = """Not Python, as templates are, whatever their suffix."""')
    assert list(of_source("lib.template", file)) == []


def test_names_of_code_do_not_make_texts_different() -> None:
    bert = "Construct a `BertTokenizer` (backed by HuggingFace's tokenizers) from BERT's files."
    albert = (
        "Construct a `AlbertTokenizer` (backed by HuggingFace's tokenizers) from ALBERT's files."
    )
    assert normalised(bert) == normalised(albert) != ""
    assert normalised("Return numpy.ndarray of x_train.") == "return of"
    assert first_sentence("One, e.g.this. Two.") == "One, e.g.this."


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a docstring that a second module has copied with another name in it."""
    root = tmp_path / "here" / "copylib"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").touch()
    own = '"""Fit the {} to whatever training data somebody has given to it. {}"""'
    for module, name, more in (("a", "FirstModel", "Then rest."), ("b", "OtherModel", "Then go.")):
        body = f"def fit(x):\n    {own.format(name, more)}\n"
        (root / f"{module}.py").write_text(body)
    (root / "tests" / "c.py").write_text('def t():\n    """A test has words of its own, many."""')
    monkeypatch.syspath_prepend(root.parent)
    return "copylib"


def test_copied_docstrings_are_kept_once(library: str) -> None:
    assert [one.module for one in harvest([library])] == ["copylib.a"]


def test_a_missing_package_is_named() -> None:
    with pytest.raises(DataError, match=r"nosuchlib.*constraints"):
        harvest(["nosuchlib"])


def test_a_harvest_does_not_depend_on_the_place(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harvest([library])
    shutil.copytree(tmp_path / "here", tmp_path / "a" / "there")
    shutil.rmtree(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "a" / "there")
    assert harvest([library]) == here


@pytest.fixture(scope="module")
def real() -> list[Docstring]:
    return harvest(["peft", "accelerate"])


def test_nothing_of_one_side_is_known_from_another(real: Sequence[Docstring]) -> None:
    shared = split(real, 60, 30)
    sides = (shared.train, shared.tuning, shared.judged)
    assert [len(side) for side in sides[1:]] == [30, 60]
    for i, one in enumerate(sides):
        for other in sides[i + 1 :]:
            assert {d.module for d in one}.isdisjoint({d.module for d in other})
            pieces = [set().union(*(shingles(d.answer) for d in side)) for side in (one, other)]
            assert pieces[0].isdisjoint(pieces[1])
    for key in (normalised, lambda text: normalised(first_sentence(text))):
        keys = [key(d.answer) for side in sides for d in side]
        assert len(set(keys)) == len(keys)
    judged = [d.module for d in shared.judged]
    assert max(judged.count(module) for module in judged) <= MOST_OF_MODULE
    assert split(list(real), 60, 30) == shared


def test_a_text_that_quotes_a_judged_one_is_left_out() -> None:
    quoted = "one two three four five six seven eight nine"
    words = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
    found = [Docstring(f"m.{word}", "p", f"The {word} has {quoted}.") for word in words]
    found += [Docstring(f"n.{word}", "p", f"Only {word} and no more.") for word in words]
    for n_judged in range(1, 5):
        shared = split(found, n_judged, 2)
        sides = (shared.train, shared.tuning, shared.judged)
        assert len({i for i, side in enumerate(sides) for d in side if quoted in d.answer}) == 1


def test_too_few_docstrings_are_refused(real: Sequence[Docstring]) -> None:
    with pytest.raises(DataError, match="too few"):
        split(real, 10_000, 10)


class Words:
    """A tokenizer whose tokens are words."""

    def __call__(self, given: Sequence[str], *, add_special_tokens: bool) -> dict:
        assert not add_special_tokens
        return {"input_ids": [text.split() for text in given]}


def test_answers_have_the_lengths_that_were_asked_for(real: Sequence[Docstring]) -> None:
    sizes = Sizes(20, 10, 30, (), most_tokens=100, shortest_answer=12)
    found = docstring_texts(real, sizes, Words())
    parts = (found.splits.train, found.splits.validation, found.splits.test)
    assert [len(part) for part in parts] == [30, 10, 20]
    for part in parts:
        assert part.answered is not None
        lengths = [len(row.completion.split()) + 1 for row in part.answered]  # type: ignore[union-attr]
        assert min(lengths) >= 12
    assert len(found.groups) == 20
    assert (np.diff(np.flatnonzero(np.diff(found.groups))) >= 0).all()
    assert docstring_texts(real, sizes, Words()).digest == found.digest
    assert docstring_texts(real[5:], sizes, Words()).digest != found.digest
    assert len(found.first("test", 5).splits.test) == 5


def test_docstrings_are_read_once(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = docstrings_of([library], tmp_path / "kept")
    monkeypatch.setattr(texts, "harvest", lambda packages: pytest.fail("read again"))
    assert docstrings_of([library], tmp_path / "kept") == found == docstrings.harvest([library])


def test_sentences_are_answered_with_a_word() -> None:
    found = as_answers(TextDataset(("fine ", "bad"), (1, 0), ("0", "1")))
    assert found.texts == (
        "Review: fine\nSentiment: positive",
        "Review: bad\nSentiment: negative",
    )


def test_numbers_come_back_as_float32() -> None:
    values = np.array([0.1, 3.0, 1e-9])
    assert unpack_numbers(pack_numbers(values)).tolist() == values.astype(np.float32).tolist()
    assert json.loads(json.dumps(pack_numbers(values))) == pack_numbers(values)


def test_sizes_come_back_from_settings() -> None:
    sizes = Sizes(3, 2, None, ("a", "b"), 50)
    assert Sizes.of_plain(json.loads(json.dumps(sizes.to_plain()))) == sizes
