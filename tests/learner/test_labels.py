"""Labels: which ones are the same class, and which are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.errors import DataError
from rankcast.learner.datasets import load_hub, load_table
from rankcast.learner.labels import label_indices, sorted_labels


def classes(*values: Any) -> tuple[str, ...]:
    return sorted_labels("file", values)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((1, 1.0, True, "1", "1.0", "1.", " 1 ", "+1", "+1.00", "\t1\n"), ("1",)),
        ((0, -0.0, False, "0", "-0", "+0", "-0.0"), ("0",)),
        (("10", "9", "-3", "0"), ("-3", "0", "9", "10")),
        ((1.0, 2.0, 10.0), ("1", "2", "10")),
        (("1.0", "2", "10.0"), ("1", "2", "10")),
        # What begins like a number and is none is a word; words are in their own order.
        (("--1", "1-", "+-1", "+", "-", "1 2"), ("+", "+-1", "-", "--1", "1 2", "1-")),
        (("1_000", "0x10", "1.0.2", "v1.5", "2nd"), ("0x10", "1.0.2", "1_000", "2nd", "v1.5")),
        (("01", "1", "001"), ("001", "01", "1")),  # codes with zeros are not the number
        (("١", "²", "½", "１", "1"), ("1", "²", "½", "١", "１")),  # no ASCII
        (("1" * 18, "1" * 18 + ".0"), ("1" * 18,)),
        (("9" * 5000, "1"), ("1", "9" * 5000)),  # too many digits for Python
        (("[INST]", "[UNK]", "a|b", "none", "NA"), ("NA", "[INST]", "[UNK]", "a|b", "none")),
        (("1", "2", "other"), ("1", "2", "other")),  # words of a CSV, two of them digits
        ((True, False, "1"), ("0", "1")),
        (("True", "false"), ("True", "false")),
    ],
)
def test_which_labels_are_the_same_class(values: tuple[Any, ...], names: tuple[str, ...]) -> None:
    assert classes(*values) == names
    found = label_indices("file", values, names)
    assert set(found) == set(range(len(names)))


@pytest.mark.parametrize(
    "label",
    [0.73, 1.5, -0.1, 1e-9, float("inf"), "0.73", " 1.5 ", "-.5", "+2.25", "5e-05", "1E3", "1.5e2",
     "0,73", "1,5", "01.5"],
)  # fmt: skip
@pytest.mark.parametrize("other", [0, "0", 1.0, "word"])
def test_fractions_are_never_classes(label: Any, other: Any) -> None:
    if isinstance(label, float) and other == "word":
        other = "1"  # words beside numbers are another mistake
    with pytest.raises(DataError) as caught:
        classes(other, label)
    assert f"file: the label {label!r} in rows 1 is neither a whole number nor a" in str(
        caught.value
    )
    assert "Regression is not supported: sort such numbers into named classes" in str(caught.value)
    with pytest.raises(DataError, match="Regression is not supported"):
        label_indices("file", [other, label], ["0", "1", "word"])


@pytest.mark.parametrize(
    "label",
    [[0, 1], ["a"], [], (1,), {"a": 1}, b"a", "[0, 1]", "['a', 'b']", '["a"]', "[]", "[0 1]",
     "[1.0\n 0.0]", "{'a': 1}", '{"a", "b"}', "{}"],
)  # fmt: skip
def test_several_labels_of_a_text_are_refused(label: Any) -> None:
    with pytest.raises(DataError, match=r"rows 1 is no single class\. Keep one label of a text"):
        classes("a", label)
    with pytest.raises(DataError, match="rows 0 is no single class"):
        label_indices("file", [label], ["a", "b"])


@pytest.mark.parametrize("label", [None, "", "  ", float("nan"), "nan", "NaN"])
def test_missing_labels_are_refused(label: Any) -> None:
    with pytest.raises(DataError, match=r"file: the label .* in rows 1, 2 is missing: fill it in"):
        classes("a", label, label)


def test_words_beside_numbers_are_refused_where_the_file_tells_them_apart() -> None:
    with pytest.raises(DataError, match="words in rows 1 and numbers in rows 0, 2"):
        classes(1, "pos", 0.0)
    with pytest.raises(DataError, match="words in rows 0 and numbers in rows 1"):
        classes("pos", True)


@given(
    st.lists(
        st.one_of(
            st.integers(),
            st.booleans(),
            st.none(),
            st.floats(),
            st.text(),
            st.from_regex(r"[+\-. 0-9]{1,5}", fullmatch=True),
            st.lists(st.integers(), max_size=2),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_labels_are_classes_or_refused(values: list[Any]) -> None:
    try:
        names = sorted_labels("file", values)
    except DataError as error:
        assert str(error).startswith("file: ")  # noqa: PT017 all else is an error of its own
        return
    assert len(set(names)) == len(names)
    found = label_indices("file", values, names)
    for value, index in zip(values, found, strict=True):
        if isinstance(value, int | float):
            assert float(names[index]) == float(value)
        else:
            assert names[index] == value.strip() or int(float(value)) == int(names[index])


def test_the_classes_of_the_training_file_are_found_however_they_are_written(
    tmp_path: Path,
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(json.dumps({"text": "a", "label": y}) for y in (0.0, 1.0, 10.0)))
    names = load_table(train, "text", "label").label_names
    assert names == ("0", "1", "10")
    dev = tmp_path / "dev.csv"
    dev.write_text("text,label\na, 10 \nb,+1\nc,0.0\nd,10.0\n", "utf-8")
    assert load_table(dev, "text", "label", names).labels == (2, 1, 0, 2)
    assert load_table(dev, "text", "label", ("0.0", "1.0", "10.0")).labels == (2, 1, 0, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([[0, 1], [1]], "is no single class"), ([2.5, 3.8], "Regression is not supported")],
)
def test_labels_of_the_hub_that_are_no_classes(
    labels: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Table(dict[str, Any]):
        features = {"label": None}  # noqa: RUF012
        column_names = ("text", "label")

    class Hub:
        @staticmethod
        def load_dataset(*_: Any, **__: Any) -> Any:
            return Table(text=["a", "b"], label=labels)

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    with pytest.raises(DataError, match=f"someone/stsb, split train.*{message}"):
        load_hub("someone/stsb", "train")
