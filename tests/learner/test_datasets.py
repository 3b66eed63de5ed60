from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rankcast.config.learner import DatasetConfig
from rankcast.errors import DataError
from rankcast.learner.datasets import load_dataset, load_hub, load_table
from rankcast.learner.texts import PACKAGES, TextDataset, load_docstrings

ROWS = [("good film", 1), ("a bare \" quote , and 'more", 0), ("fine", 1), ("dull", 0)]


def write(path: Any, rows: Any, header: Any = ("text", "label")) -> Any:
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return path
    else:
        lines = ["\t".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_every_text_format_gives_the_same_data(tmp_path: Path, suffix: Any) -> None:
    data = load_table(write(tmp_path / f"d{suffix}", ROWS), "text", "label")
    assert data.texts == tuple(text for text, _ in ROWS)
    assert data.labels == (1, 0, 1, 0)
    assert data.label_names == ("0", "1")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"text": [t for t, _ in ROWS], "label": [y for _, y in ROWS]})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert load_table(tmp_path / "d.parquet", "text", "label").labels == (1, 0, 1, 0)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a readable Parquet"):
        load_table(tmp_path / "bad.parquet", "text")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"rankcast\[data\]"):
        load_table(tmp_path / "d.parquet", "text")


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["neg", "pos", "neg", "pos"], None, (0, 1, 0, 1)),
        ([10, 9, 10, 9], None, (1, 0, 1, 0)),  # in numeric order, not as words
        (["pos", "0", "1", "neg"], ("neg", "pos"), (1, 0, 1, 0)),  # by name or by index
        (["1", "2", "1", "2"], ("1", "2"), (0, 1, 0, 1)),  # numbers as names are not indices
    ],
)
def test_labels(tmp_path: Path, labels: Any, names: Any, expected: Any) -> None:
    rows = [(text, y) for (text, _), y in zip(ROWS, labels, strict=True)]
    file = write(tmp_path / "d.tsv", rows)
    assert load_table(file, "text", "label", names).labels == expected


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("2", ("neg", "pos"), "index from 0 to 1"),
        ("poss", ("neg", "pos"), "did you mean 'pos'"),
        ("0", ("1", "2"), "neither one of the classes 1, 2"),
        ("0.5", ("neg", "pos"), r"'0\.5' in rows 4"),
        ("", None, "in rows 4 is missing"),
    ],
)
def test_wrong_labels_name_the_row(tmp_path: Path, label: Any, names: Any, message: Any) -> None:
    good = names or ("a", "b")
    rows = [(text, good[y]) for text, y in ROWS]
    with pytest.raises(DataError, match=message):
        load_table(write(tmp_path / "d.tsv", [*rows, ("x", label)]), "text", "label", names)


def test_fractional_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Regression is not supported"):
        load_table(write(tmp_path / "d.jsonl", [("a b", 0.5), ("c d", 1)]), "text", "label")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.tsv", "", "is empty"),
        ("d.tsv", "text\tlabel\n", "is empty"),
        ("d.tsv", "sentence\tlabel\na\t1\n", "no column 'text'.*It has: sentence, label"),
        ("d.tsv", "text\tlabel\na\t1\n \t0\n", "empty: rows 1"),
        ("d.tsv", "text\tlabel\na\t1\tmore\n", "line 2: [13] cells under 2 columns"),
        ("d.tsv", "text\tlabel\na\n", "line 2: [13] cells under 2 columns"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2 is not JSON"),
        ("d.jsonl", "[1]\n", "not a JSON object"),
        ("d.jsonl", '{"text": null, "label": 1}\n', "empty: rows 0"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "'label' is missing in rows 1"),
        ("d.xlsx", "x", "Cannot tell the format"),
    ],
)
def test_files_that_cannot_be_learned_from(
    tmp_path: Path, name: Any, content: Any, message: Any
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / name, "text", "label")


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", ROWS)
    with pytest.raises(DataError, match=r"did you mean 'train\.tsv'"):
        load_table(tmp_path / "trian.tsv", "text")


def test_a_misspelt_column_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'label'"):
        load_table(write(tmp_path / "d.tsv", ROWS), "text", "lable")


def test_a_folder_uses_the_classes_of_its_training_file(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", [("a", "x"), ("b", "y"), ("c", "z")] * 4)
    write(tmp_path / "dev.jsonl", [("d", "z")])
    splits = load_dataset(DatasetConfig(str(tmp_path)))
    assert splits.validation.labels == (2,)
    assert splits.validation.label_names == ("x", "y", "z")
    assert splits.test == splits.validation


def test_held_out_texts_are_cut_from_the_training_texts(tmp_path: Path) -> None:
    rows = [(f"text {i}", i % 2) for i in range(50)]
    write(tmp_path / "train.csv", rows)
    folder = load_dataset(DatasetConfig(str(tmp_path)))
    file = load_dataset(DatasetConfig(str(tmp_path / "train.csv")))
    assert (len(folder.train), len(folder.validation)) == (45, 5)
    assert (len(file.train), len(file.validation), len(file.test)) == (40, 5, 5)
    for splits in (folder, file):
        assert not set(splits.train.texts) & set(splits.validation.texts)


def test_a_causal_data_set_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [(f"text {i}", 0) for i in range(20)])
    splits = load_dataset(DatasetConfig(str(tmp_path), label_column=None))
    assert splits.train.labels is None
    assert splits.train.n_labels == 0
    assert load_dataset(DatasetConfig(label_column=None)).test.labels is None


def test_one_class_cannot_be_learned(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [(f"text {i}", "only") for i in range(20)])
    with pytest.raises(DataError, match="all 18 texts have the label 'only'"):
        load_dataset(DatasetConfig(str(tmp_path)))


def test_sizes_and_seeds() -> None:
    small = load_dataset(DatasetConfig(max_train=30, max_validation=7, max_test=5, seed=3))
    again = load_dataset(DatasetConfig(max_train=30, max_validation=7, max_test=5, seed=3))
    other = load_dataset(DatasetConfig(max_train=30, max_validation=7, max_test=5, seed=4))
    assert (len(small.train), len(small.validation), len(small.test)) == (30, 7, 5)
    assert small == again
    assert small.train != other.train


def test_folders_without_training_data_and_missing_paths(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no training file.*notes\.txt"):
        load_dataset(DatasetConfig(str(tmp_path)))
    with pytest.raises(DataError, match="no file or folder"):
        load_dataset(DatasetConfig(str(tmp_path / "nowhere")))


def test_the_hub_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"rankcast\[data\]"):
        load_hub("someone/something", "train")


class HubTable(dict):
    features: dict = {}  # noqa: RUF012

    @property
    def column_names(self) -> Any:
        return list(self)


def test_hub_splits(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Module:
        @staticmethod
        def load_dataset(name: Any, config: Any, split: Any) -> Any:
            if split == "validation":
                raise ValueError("Unknown split")
            table = HubTable(sentence=[f"s {i}" for i in range(20)], label=[0, 1] * 10)
            if split == "test":
                table["label"] = [-1] * 20
            names = type("ClassLabel", (), {"names": ["neg", "pos"]})
            table.features = {"label": names}
            return table

    monkeypatch.setitem(sys.modules, "datasets", Module)
    splits = load_dataset(DatasetConfig("glue", hub_config="sst2", text_column="sentence"))
    assert splits.train.label_names == ("neg", "pos")
    assert (len(splits.train), len(splits.validation)) == (18, 2)
    assert splits.test == splits.validation  # hidden test labels are of no use
    with pytest.raises(DataError, match="Unknown split"):
        load_dataset(DatasetConfig("glue", text_column="sentence", validation="validation"))
    with pytest.raises(DataError, match="no column 'text'"):
        load_hub("glue", "train")


def test_docstrings_are_a_data_set() -> None:
    splits = load_docstrings(seed=0)
    parts = (splits.train, splits.validation, splits.test)
    texts = [text.casefold() for part in parts for text in part.texts]
    assert len(set(texts)) == len(texts) > 2500
    assert splits.train.label_names == PACKAGES
    assert all(set(part.labels) == set(range(8)) for part in parts)
    assert max(splits.train.labels.count(i) for i in range(8)) < 0.3 * len(splits.train)
    assert splits == load_docstrings(seed=0)
    assert splits.train != load_docstrings(seed=1).train
    with pytest.raises(DataError, match="train, validation or test"):
        splits["dev"]


def test_split_is_a_partition() -> None:
    data = TextDataset(tuple(map(str, range(10))), tuple(i % 2 for i in range(10)), ("a", "b"))
    first, second = data.split((0.7, 0.3), seed=5)
    assert (len(first), len(second)) == (7, 3)
    assert sorted(first.texts + second.texts) == sorted(data.texts)
    for part in (first, second):
        assert part.labels == tuple(int(text) % 2 for text in part.texts)


@pytest.mark.parametrize("fractions", [(0.9, 0.2), (0.0, 1.0), (0.99, 0.01)])
def test_impossible_splits(fractions: Any) -> None:
    with pytest.raises(DataError):
        TextDataset(tuple("abcdefghij")).split(fractions, seed=0)


def test_impossible_data_sets() -> None:
    with pytest.raises(DataError, match="no texts"):
        TextDataset(())
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        TextDataset(("a", "b"), (0,), ("x", "y"))
    with pytest.raises(DataError, match="Label 2 is out of range in rows 1"):
        TextDataset(("a", "b"), (0, 2), ("x", "y"))
    with pytest.raises(DataError, match="must be positive"):
        TextDataset(("a", "b")).sample(0, seed=0)
