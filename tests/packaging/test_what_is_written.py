"""What pack says of its loss, what may be replaced, and damaged files whose prefix is whole."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Call
from rankcast.codec.container import load, read_container
from rankcast.codec.formats.peft import WEIGHTS
from rankcast.errors import CodecError
from rankcast.simulation.made_up import write_adapter


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "lora", 1)
    return tmp_path / "lora"


@pytest.fixture
def file(lora: Path, tmp_path: Path, call: Call) -> Path:
    call.ok("pack", str(lora), "-o", str(tmp_path / "a.rcast"))
    return tmp_path / "a.rcast"


def test_pack_says_what_rounding_loses(lora: Path, tmp_path: Path, call: Call) -> None:
    file, lost = tmp_path / "a.rcast", []
    for quality in ("small", "good", "fine"):
        words = ("pack", str(lora), "-o", str(file), "--quality", quality)
        lost.append(json.loads(call.ok(*words, "--json"))["lost_energy"])
    assert 1 > lost[0] > lost[1] > lost[2] > 0
    out = call.ok("pack", str(lora), "-o", str(file))
    assert f"{lost[1]:.1%} of the update's energy is lost. Finer: --quality fine" in out
    assert "Finer" not in call.ok("pack", str(lora), "-o", str(file), "--quality", "fine")
    assert "Weights are rounded" in " ".join(call.ok("info", str(file)).split())


def test_a_folder_that_holds_something_stays(file: Path, lora: Path, call: Call) -> None:
    before = (lora / WEIGHTS).read_bytes()
    for command in ("unpack", "export"):
        err = call.refused(command, str(file), "-o", str(lora))
        assert str(lora) in err
        assert "--overwrite" in err
        assert (lora / WEIGHTS).read_bytes() == before
    (lora / "notes.txt").write_text("mine")
    call.ok("unpack", str(file), "-o", str(lora), "--overwrite")
    assert (lora / WEIGHTS).read_bytes() != before
    assert (lora / "notes.txt").read_text() == "mine"
    empty = lora.parent / "empty"
    empty.mkdir()
    call.ok("unpack", str(file), "-o", str(empty))


def test_pack_replaces_files_of_its_own_alone(file: Path, lora: Path, call: Call) -> None:
    other = lora / WEIGHTS
    before = other.read_bytes()
    assert "it stays" in call.refused("pack", str(lora), "-o", str(other))
    assert other.read_bytes() == before
    assert str(lora) in call.refused("pack", str(lora), "-o", str(lora))
    call.ok("pack", str(lora), "-o", str(file), "--quality", "small")
    file.write_bytes(b"")
    call.ok("pack", str(lora), "-o", str(file))


def test_the_prefix_before_the_damage_is_used_on_request(
    file: Path, tmp_path: Path, call: Call
) -> None:
    container = load(file)
    n = len(container.chunks)
    data = bytearray(file.read_bytes())
    at = len(data) - sum(map(len, container.chunks[3:]))  # the first byte of chunk 3
    data[at] ^= 1
    file.write_bytes(data)
    for words in (("info",), ("unpack", "-o", str(tmp_path / "no"))):
        err = call.refused(words[0], str(file), *words[1:])
        assert "Chunk 3 is damaged" in err
        assert "use the 3 before it with --prefix" in err
    with pytest.raises(CodecError, match="damaged"):
        load(file)
    assert load(file, prefix=True) == container.prefix(3)
    assert f"3 of {n} chunks" in call.ok("info", str(file), "--prefix")
    out = call.ok("unpack", str(file), "-o", str(tmp_path / "u"), "--prefix")
    assert f"3 of {n} chunks" in out
    out = call.ok("export", str(file), "-o", str(tmp_path / "e"), "--chunks", "2")
    assert f"2 of {n} chunks" in out
    err = call.refused("export", str(file), "-o", str(tmp_path / "f"), "--chunks", "4")
    assert "3 complete chunks" in err
    assert "damaged" in call.refused("verify", str(file))


def test_damage_to_the_first_chunk_leaves_nothing_to_offer(file: Path) -> None:
    container = load(file)
    data = bytearray(file.read_bytes())
    data[len(data) - sum(map(len, container.chunks))] ^= 1
    with pytest.raises(CodecError, match=r"Fetch the file again\.$"):
        read_container(bytes(data))


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permissions")]
)
def test_a_disk_that_does_not_take_it_is_told_with_the_path(
    number: int, words: str, *, file: Path, lora: Path, tmp_path: Path, call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(number, "refused", str(tmp_path / ".rankcast-x.tmp"))

    target = tmp_path / "target"
    monkeypatch.setattr("rankcast.cli.pack.put_file", refuses)
    monkeypatch.setattr("rankcast.codec.formats.peft_write.write_tensor_file", refuses)
    for command in (("pack", str(lora)), ("unpack", str(file)), ("export", str(file))):
        err = call.refused(*command, "-o", str(target))
        assert words in err
        assert f"{target} could not be written" in err
        assert ".rankcast-x" not in err


def test_input_of_the_wrong_kind_names_the_command_for_it(
    file: Path, lora: Path, tmp_path: Path, call: Call
) -> None:
    assert "rankcast pack makes a file" in call.refused("info", str(lora))
    err = call.refused("pack", str(file), "-o", str(tmp_path / "b.rcast"))
    assert "rankcast info shows a packed file" in err


def test_a_folder_without_a_model_is_said_so(lora: Path, tmp_path: Path, call: Call) -> None:
    words = ("pack", str(lora), "-o", str(tmp_path / "b.rcast"), "--base-model", str(lora))
    err = call.refused(*words)
    assert "config.json cannot be read: No such file or directory" in err
    assert "Errno" not in err
    assert "Name the folder that save_pretrained wrote" in err
