"""Text files in every encoding that programs write: read if UTF-8, else named with the remedy."""

from __future__ import annotations

import codecs
import gzip
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.errors import DataError, LinkError
from rankcast.plain_text import column_place, read_text

ENDS = ("\n", "\r\n", "\r")
LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff")))


def read_bytes(raw: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.csv"
        path.write_bytes(raw)
        return read_text(path, DataError)


@given(LINES, st.sampled_from(ENDS), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_utf_8_is_read_with_or_without_a_mark_and_line_ends_stay(
    lines: list[str], end: str, encoding: str
) -> None:
    text = end.join(["text,label", *lines])
    assert read_bytes(text.encode(encoding)) == text


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0")), max_size=5))
def test_other_unicode_is_named_even_without_a_mark(lines: list[str]) -> None:
    text = "\n".join(["text,label", *lines])
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        with pytest.raises(DataError, match=r"UTF-16, not UTF-8.*iconv -f UTF-16 -t UTF-8"):
            read_bytes(text.encode(encoding))
    for encoding in ("utf-16", "utf-32"):  # the other order of bytes
        mark = {"utf-16": codecs.BOM_UTF16_BE, "utf-32": codecs.BOM_UTF32_BE}[encoding]
        with pytest.raises(DataError, match=f"{encoding.upper()}, not UTF-8"):
            read_bytes(mark + text.encode(f"{encoding}-be"))
    with pytest.raises(DataError, match="UTF-32, not UTF-8"):
        read_bytes(text.encode("utf-32"))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "iso8859-15", "mac-roman"])
@pytest.mark.parametrize("end", ENDS)
def test_encodings_of_one_byte_are_named_with_the_line_and_the_remedy(
    encoding: str, end: str
) -> None:
    raw = end.join(["text,label", "plain,0", "café,1"]).encode(encoding)
    with pytest.raises(DataError) as caught:
        read_bytes(raw)
    assert "line 3: the byte 0x" in str(caught.value)
    assert re.search("Windows-1252 or Latin-1.*iconv -f WINDOWS-1252 -t UTF-8", str(caught.value))


@pytest.mark.parametrize("end", ENDS)
def test_nul_bytes_are_refused_by_line(end: str) -> None:
    raw = end.join(["text,label", "a film,0", "a f\0lm,1", "b,0"]).encode()
    with pytest.raises(DataError, match="line 3: there is a NUL byte"):
        read_bytes(raw)
    # A log that was cut by a loss of power ends in a block of them: that is not UTF-16.
    with pytest.raises(DataError, match="line 2: there is a NUL byte"):
        read_bytes(b"time_s,snr_db\n" + bytes(4096))


@given(st.binary(max_size=100))
def test_any_bytes_are_text_or_refused(raw: bytes) -> None:
    try:
        text = read_bytes(raw)
    except DataError as error:
        assert "file.csv" in str(error)  # noqa: PT017 all else is an error of its own
    else:
        assert raw in (text.encode(), codecs.BOM_UTF8 + text.encode())


def test_errors_are_of_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(LinkError, match=f"{re.escape(str(path))} cannot be read"):
            read_text(path, LinkError)


def test_a_column_is_found_or_its_lack_explained() -> None:
    assert column_place("f", ["a", "b", "a"], "b", DataError) == 1  # of a's nobody asked
    with pytest.raises(DataError, match=r"f: 2 columns are called 'a'\. Rename all but one"):
        column_place("f", ["a", "b", "a"], "a", DataError)
    with pytest.raises(DataError, match=r"no column 'lable'; did you mean 'label'\? It has: text,"):
        column_place("f", ["text", "label"], "lable", DataError)
    with pytest.raises(DataError, match="It has: nothing"):
        column_place("f", [], "text", DataError)


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_another_separator_is_named(separator: str) -> None:
    with pytest.raises(DataError) as caught:
        column_place("f", [f"text{separator}label"], "text", DataError)
    assert f"no column 'text': the columns seem to be separated by {separator!r}" in str(
        caught.value
    )
    assert "commas between columns" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "name"),
    [(gzip.compress(b"text,label", mtime=0), "a gzip file"), (b"PK\x03\x04\x14\0", "a zip file or"),
     (b"PAR1\x15\x04\x15", "Parquet")],
)  # fmt: skip
def test_a_packed_file_is_named_as_what_it_is(raw: bytes, name: str) -> None:
    with pytest.raises(DataError, match=rf"file\.csv is {name}.*not text\. Unpack it"):
        read_bytes(raw)
