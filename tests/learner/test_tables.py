"""Tables of texts as programs write them, read alike, or refused by what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.config.learner import DatasetConfig
from rankcast.errors import DataError
from rankcast.learner.datasets import load_dataset, load_table
from rankcast.learner.tables import read_columns
from rankcast.learner.texts import TextDataset

MARKS = ("utf-8", "utf-8-sig")
ENDS = ("\n", "\r\n", "\r")
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0\ufeff")
TEXTS = st.lists(st.text(CHARACTERS, min_size=1).filter(str.strip), min_size=1, max_size=6)


def load(name: str, content: str | bytes, label_column: str | None = "label") -> TextDataset:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_table(path, "text", label_column)


def in_csv(rows: list[tuple[Any, ...]], end: str = "\n", quoting: Any = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=quoting).writerows(rows)
    return file.getvalue()


@given(
    TEXTS,
    st.sampled_from(ENDS),
    st.sampled_from(MARKS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_csv_gives_back_what_was_written(
    texts: list[str], end: str, encoding: str, quoting: int
) -> None:
    if any({"\r", "\n"} & {*text} for text in texts):
        quoting = csv.QUOTE_ALL  # Python quotes no other line ends than the file's
    rows = [("label", "text"), *((i % 2, text) for i, text in enumerate(texts))]
    data = load("d.csv", in_csv(rows, end, quoting).encode(encoding))
    assert data.texts == tuple(texts)
    assert data.labels == tuple(i % 2 for i in range(len(texts)))


@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_characters="\0\ufeff\t\r\n"), min_size=1
        ).filter(str.strip),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(ENDS),
    st.sampled_from(MARKS),
)
def test_tsv_gives_back_what_was_written(texts: list[str], end: str, encoding: str) -> None:
    lines = ["text\tlabel", *(f"{text}\tx" for text in texts)]
    assert load("d.tsv", (end.join(lines) + end).encode(encoding)).texts == tuple(texts)


@given(TEXTS, st.sampled_from(ENDS), st.sampled_from(MARKS), st.booleans())
def test_json_gives_back_what_was_written(
    texts: list[str], end: str, encoding: str, escaped: bool
) -> None:
    rows = [{"text": text, "label": i % 2, "more": [1]} for i, text in enumerate(texts)]
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    for name, content in (
        ("d.jsonl", end.join(lines)),
        ("d.json", end.join(lines) + end),
        ("d.json", f"[{f',{end}'.join(lines)}]"),
        ("d.json", end + json.dumps(rows, indent=2).replace("\n", end)),
    ):
        data = load(name, content.encode(encoding))
        assert data.texts == tuple(texts)
        assert data.label_names == ("0", "1")[: len(texts)]


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json"])
def test_cells_of_any_length_are_read_and_no_setting_stays_changed(name: str) -> None:
    before, long = csv.field_size_limit(), "x" * 300_000
    if name.endswith("v"):
        sep = "," if name == "d.csv" else "\t"
        content = f"text{sep}label\n{long}{sep}0\n{long}y{sep}1\n"
    else:
        rows = [{"text": long, "label": 0}, {"text": f"{long}y", "label": 1}]
        content = "\n".join(map(json.dumps, rows))
    assert load(name, content).texts == (long, f"{long}y")
    assert csv.field_size_limit() == before
    if name == "d.csv":
        with pytest.raises(DataError):
            load(name, f'text,label\n"{long}')
        assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", "\n\ntext,label\n\na,0\n\n\nb,1\n\n"),
        ("d.csv", "text,label,\na,0,\n,,\nb,1,\n,,\n,,\n"),  # as spreadsheets fill up
        ("d.csv", 'text,label\na,0\n"",""\nb,1'),
        ("d.tsv", "text\tlabel\r\na\t0\r\n\t\r\n\r\nb\t1\r\n"),
        ("d.jsonl", '\n{"text": "a", "label": 0}\n   \n{"text": "b", "label": 1}\n\n'),
        ("d.csv", "text , label\na,0\nb,1\n"),
    ],
)
def test_rows_without_anything_are_no_rows(name: str, content: str) -> None:
    data = load(name, content)
    assert (data.texts, data.labels) == (("a", "b"), (0, 1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "text,label,label\na,0,1\n", "2 columns are called 'label'"),
        ("d.csv", "text,text,label\na,b,1\n", "2 columns are called 'text'"),
        ("d.tsv", "text\tlabel\ttext \na\t0\tb\n", "2 columns are called 'text'"),
        ("d.jsonl", '{"text": "a", "label": 0, "label": 1}\n', "line 1 .*'label' stands in it twi"),
        ("d.json", '[{"text": "a", "text": "b", "label": 1}]', "'text' stands in it twice"),
        ("d.csv", "text,label\na,0\nb\n", "line 3: 1 cells under 2 columns"),
        ("d.csv", "text,label\na,0\n\nb, c,1\n", "line 4: 3 cells under 2 columns"),
        ("d.csv", "text,label\na,0,\nb,1,\n", "line 2: 3 cells under 2 columns"),
        ("d.csv", 'text,label\na,0\n"b,1\n', "is not part of a readable table"),
        ("d.csv", 'text,label\n"a"b,0\n', "is not part of a readable table"),
        ("d.csv", "text,label\na\rb,0\n", "line 2: 1 cells under 2 columns"),
        ("d.csv", "text;label\na;0\n", "separated by ';'. Save it as CSV with commas"),
        ("d.csv", "text\tlabel\na\t0\n", r"separated by '\\t'"),
        ("d.tsv", "text,label\na,0\n", "separated by ','"),
        ("d.csv", "text,label\n ,0\n", "1 of 1 texts are empty: rows 0"),
        ("d.csv", "text,label\na,0\n,1\n", "1 of 2 texts are empty: rows 1"),
        ("d.jsonl", '{"text": null, "label": 1}\n', "texts are empty: rows 0"),
        ("d.jsonl", '{"text": NaN, "label": 1}\n', "texts are empty: rows 0"),
        ("d.jsonl", '{"text": ["a", "b"], "label": 1}', "rows 0 .* of the type list, not a text"),
        ("d.jsonl", '{"text": {"role": "user"}, "label": 1}', "of the type dict, not a text"),
        ("d.jsonl", '{"text": "\\ud83d", "label": 1}', "rows 0 hold half a character"),
        ("d.jsonl", '{"text": "a", "label": 0}\n{"text": "b" "label"}', "line 2 is not JSON: Exp"),
        ("d.jsonl", f'{{"text": "a", "label": {"9" * 5000}}}', "line 1 is not JSON"),
        ("d.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("d.jsonl", '{"text": "a", "label": 0} {"text": "b"}', "line 1 is not JSON: Extra data"),
        ("d.json", '[\n{"text": "a"},\n{"text" "b"}]', "line 3 is not JSON: Expecting"),
        ("d.json", "[1, 2]", "1 is not a JSON object .* array of objects"),
        ("d.json", '{\n"text": "a"\n}', "line 1 is not JSON"),
        ("d.json", '{"data": [{"text": "a"}]}', "no column 'text'"),
        ("d.json", "[]", "is empty"),
        ("d.csv", "\n\n", "is empty"),
        ("d.csv", "text,label\r,\r", "is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, content)


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.json"])
def test_other_encodings_and_nul_bytes_are_named(name: str) -> None:
    text = "text,label\ncafé,0\n"
    for encoding, message in (
        ("utf-16", "UTF-16, not UTF-8"),
        ("latin-1", "byte 0xe9 is not UTF-8"),
        ("cp1252", "line 2"),
    ):
        with pytest.raises(DataError, match=message):
            load(name, text.encode(encoding))
    with pytest.raises(DataError, match="line 2: there is a NUL byte"):
        load(name, text.replace("caf", "ca\0"))


def test_columns_that_nobody_reads_may_share_a_name_or_have_none() -> None:
    assert load("d.csv", ",,id,id,text,label\n0,1,2,3,a,x\n").texts == ("a",)


def test_parquet_of_every_kind(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def load_arrow(*columns: tuple[str, Any]) -> TextDataset:
        names, arrays = zip(*columns, strict=True)
        table = pa.Table.from_arrays([pa.array(values) for values in arrays], names=list(names))
        parquet.write_table(table, tmp_path / "d.parquet")
        return load_table(tmp_path / "d.parquet", "text", "label")

    texts = ("text", ["a", "b"])
    # pandas makes floats of whole numbers as soon as one of them is missing.
    assert load_arrow(texts, ("label", [1.0, 0.0])).label_names == ("0", "1")
    for label, message in (
        ([0.73, 1.0], "the label 0.73 in rows 0 is neither a whole number nor a word"),
        ([1.0, None], "the label None in rows 1 is missing"),
        ([1.0, float("nan")], "the label nan in rows 1 is missing"),
        ([["x"], ["x", "y"]], "is no single class"),
        ([b"x", b"y"], "is no single class"),
    ):
        with pytest.raises(DataError, match=message):
            load_arrow(texts, ("label", label))
    with pytest.raises(DataError, match="texts are empty: rows 0"):
        load_arrow(("text", [None, "b"]), ("label", [0, 1]))
    with pytest.raises(DataError, match="2 columns are called 'label'"):
        load_arrow(texts, ("label", [0, 1]), ("label", [1, 0]))
    with pytest.raises(DataError, match="'label'; did you mean 'lable'"):
        load_arrow(texts, ("lable", [0, 1]))
    with pytest.raises(DataError, match="is empty"):
        load_arrow(("text", pa.array([], pa.string())), ("label", pa.array([], pa.int64())))
    whole = (tmp_path / "d.parquet").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 9):
        (tmp_path / "cut.parquet").write_bytes(whole[:cut])
        with pytest.raises(DataError, match="not a readable Parquet"):
            load_table(tmp_path / "cut.parquet", "text", "label")


@given(st.sampled_from(["d.csv", "d.tsv", "d.jsonl", "d.json", "d.parquet"]), st.binary())
def test_garbage_is_refused_with_its_name(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_columns(path, ["text", "label"])


def test_a_json_file_is_a_split_of_a_folder(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": float(i % 2)} for i in range(20)]
    (tmp_path / "train.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "test.csv").write_text("text,label\nlast,1\n", "utf-8")
    splits = load_dataset(DatasetConfig(str(tmp_path)))
    assert splits.train.label_names == ("0", "1")
    assert (len(splits.train), len(splits.validation), splits.test.labels) == (18, 2, (1,))
