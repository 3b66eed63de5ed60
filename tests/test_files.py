"""Files and folders that are whole or not there, whoever else writes them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from helpers.waiting import DEADLOCK_S, at_once
from rankcast.errors import DeliveryError
from rankcast.files import new_folder, only_one, put_file, replace_file

HOUR_S = 3600.0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Both have opened their temporary file before either is done; the last one stays."""
    path, both = tmp_path / "x", threading.Barrier(2)
    seen: list[str] = []

    def write(data: bytes) -> None:
        def fill(partial: Path) -> None:
            seen.append(partial.name)
            with partial.open("xb") as file:
                file.write(data[:3])
                both.wait(DEADLOCK_S)
                file.write(data[3:])

        replace_file(path, fill)

    at_once(lambda: write(b"aaaaaa"), lambda: write(b"bbbbbb"))
    assert path.read_bytes() in (b"aaaaaa", b"bbbbbb")
    assert len(set(seen)) == 2
    assert names(tmp_path) == {"x"}


def test_many_writers_leave_one_of_their_files(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x"
    contents = [bytes([n]) * 10_000 for n in range(8)]
    at_once(*(lambda data=data: put_file(path, data) for data in contents))
    assert path.read_bytes() in contents
    assert names(path.parent) == {"x"}


def test_two_writers_of_one_folder_leave_one_whole(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def write(text: str) -> None:
        with new_folder(tmp_path / "target") as new:
            (new / "a").write_text(text)
            (new / "b").write_text(text)
            both.wait(DEADLOCK_S)

    at_once(lambda: write("one"), lambda: write("two"))
    assert names(tmp_path) == {"target"}
    assert {(tmp_path / "target" / name).read_text() for name in "ab"} <= {"one", "two"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    error: type[BaseException], tmp_path: Path
) -> None:
    put_file(tmp_path / "x", b"old")

    def fail(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise error

    with pytest.raises(error):
        replace_file(tmp_path / "x", fail)
    with pytest.raises(error), new_folder(tmp_path / "y") as new:  # noqa: PT012 it fails within
        (new / "z").write_bytes(b"half")
        raise error
    assert (names(tmp_path), (tmp_path / "x").read_bytes()) == ({"x"}, b"old")


@pytest.mark.parametrize("shift_s", [-2 * HOUR_S, 2 * HOUR_S, -50 * 365 * 24 * HOUR_S])
def test_what_a_killed_process_left_is_removed_by_the_next_one(
    shift_s: float, tmp_path: Path
) -> None:
    """Whether the clock ran on or was set back since; what is not ours or is new stays."""
    left: list[Path] = []

    def abandon(partial: Path) -> None:
        left.append(partial)
        partial.write_bytes(b"half")
        (tmp_path / "kept").write_bytes(partial.read_bytes())

    replace_file(tmp_path / "x", abandon)
    file, folder = left[0], left[0].with_name(left[0].name.replace("rankcast-", "rankcast-f"))
    fresh = left[0].with_name(left[0].name.replace("rankcast-", "rankcast-n"))
    for path in (file, fresh, tmp_path / ".other.tmp", tmp_path / ".x.tmp"):
        path.write_bytes(b"half")
    folder.mkdir()
    (folder / "inner").write_bytes(b"half")
    at = time.time() + shift_s
    for path in (file, folder / "inner", folder, tmp_path / ".other.tmp", tmp_path / ".x.tmp"):
        os.utime(path, (at, at))
    put_file(tmp_path / "y", b"new")
    assert names(tmp_path) == {"x", "y", "kept", fresh.name, ".other.tmp", ".x.tmp"}


def test_a_folder_that_is_still_being_filled_is_left_alone(tmp_path: Path) -> None:
    at = time.time() - 2 * HOUR_S
    with new_folder(tmp_path / "target") as new:
        (new / "long").write_bytes(b"still growing")
        os.utime(new, (at, at))  # nothing was added for long
        put_file(tmp_path / "x", b"new")
        assert new.is_dir()
    assert (tmp_path / "target" / "long").read_bytes() == b"still growing"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_secret_is_never_open_to_others(tmp_path: Path) -> None:
    put_file(tmp_path / "key", b"secret", 0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_who_comes_second_is_refused_or_waits(tmp_path: Path) -> None:
    order: list[str] = []
    held, waiting = threading.Event(), threading.Event()

    def first() -> None:
        with only_one(tmp_path / ".lock", "writing"):
            held.set()
            assert waiting.wait(DEADLOCK_S)
            order.append("first")

    def second() -> None:
        assert held.wait(DEADLOCK_S)
        refusal = pytest.raises(DeliveryError, match="Someone else is writing")
        with refusal, only_one(tmp_path / ".lock", "writing"):
            order.append("refused")
        waiting.set()
        with only_one(tmp_path / ".lock", "writing", wait=True):
            order.append("second")

    at_once(first, second)
    assert order == ["first", "second"]
