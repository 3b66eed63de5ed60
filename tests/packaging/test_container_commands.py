"""pack, unpack, info and verify, from a folder to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.codec import random_adapter
from helpers.commands import Call, fresh_python
from rankcast.codec.container import read_container
from rankcast.codec.formats.peft import read_peft, write_peft


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    widths = ((48, 32), (32, 96), (32, 32))
    tensors = random_adapter(0, widths, (8, 8, 8), {"classifier.weight": (2, 32)}, size=0.3)
    return write_peft(tensors, tmp_path / "lora", base_model_name="tiny", task_type="SEQ_CLS")


@pytest.fixture
def packed(lora: Path, tmp_path: Path, call: Call) -> Path:
    file = tmp_path / "a.rcast"
    out = call.ok("pack", str(lora), "-o", str(file))
    assert "times smaller than float32" in out
    return file


def test_pack_info_verify_unpack(packed: Path, lora: Path, tmp_path: Path, call: Call) -> None:
    out = call.ok("info", str(packed), "--json")
    info = json.loads(out)
    assert info["base_model"] == "tiny"
    assert info["ladder"][-1]["bits_so_far"] == 8 * packed.stat().st_size
    sizes = [prefix["bits_so_far"] for prefix in info["ladder"]]
    assert sizes == sorted(sizes)

    out = call.ok("info", str(packed))
    assert "every prefix is an adapter" in out
    assert "5/8" in out  # the last three are below the step
    assert "whole and unchanged" in call.ok("verify", str(packed))

    target = tmp_path / "out"
    call.ok("unpack", str(packed), "-o", str(target))
    before, after = read_peft(lora)[0], read_peft(target)[0]
    for f, g in zip(before.factors, after.factors, strict=True):
        error = np.linalg.norm(f.delta_weight() - g.delta_weight())
        assert error < 0.6 * np.linalg.norm(f.delta_weight())
    assert read_peft(target)[1]["task_type"] == "SEQ_CLS"


def test_the_file_fits_the_budget_and_the_link(lora: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "a.rcast"
    sizes = []
    for bits in ("20000", "40000"):
        call.ok("pack", str(lora), "-o", str(file), "--budget-bits", bits)
        sizes.append(8 * file.stat().st_size)
        assert sizes[-1] <= float(bits)
    assert sizes[1] > sizes[0]
    # AWGN at 10·log10(3) dB carries 2 bit/s/Hz: 20 kHz for a second are 40,000 bits.
    link = ["--snr-db", "4.771212547", "--bandwidth-hz", "20000", "--deadline-s", "1"]
    assert (
        json.loads(call.ok("pack", str(lora), "-o", str(file), *link, "--json"))["bits"] == sizes[1]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget-bits", "100"], "short by"),
        (["--budget-bits", "1e5", "--quality", "fine"], "one of"),
        (["--snr-db", "5"], "--bandwidth-hz"),
    ],
)
def test_impossible_wishes_are_refused_and_nothing_is_written(
    options: list[str], words: str, lora: Path, tmp_path: Path, call: Call
) -> None:
    file = tmp_path / "a.rcast"
    err = call.refused("pack", str(lora), "-o", str(file), *options)
    assert words in err
    assert not file.exists()


def test_a_file_that_was_cut_short_gives_what_has_arrived(
    packed: Path, tmp_path: Path, call: Call
) -> None:
    container = read_container(packed.read_bytes())
    packed.write_bytes(packed.read_bytes()[: -len(container.chunks[-1]) - 1])
    target = tmp_path / "out"
    err = call.refused("unpack", str(packed), "-o", str(target))
    assert "--prefix" in err
    assert not target.exists()
    out = call.ok("unpack", str(packed), "-o", str(target), "--prefix")
    n = len(container.chunks)
    assert f"{n - 2} of {n} chunks" in out


def test_damage_and_absence_are_named(packed: Path, tmp_path: Path, call: Call) -> None:
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    packed.write_bytes(data)
    for command in ("verify", "info"):
        err = call.refused(command, str(packed))
        assert "damaged" in err
    err = call.refused("verify", str(tmp_path / "none.rcast"))
    assert "cannot be read" in err
    err = call.refused("pack", str(tmp_path), "-o", str(tmp_path / "x.rcast"))
    assert "no adapter" in err


def test_none_of_it_needs_torch(packed: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rankcast.cli.main import main\n"
        f"try: main(['unpack', {str(packed)!r}, '-o', {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as stop: status = stop.code\n"
        "print(status, sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = fresh_python(code)
    assert done.stdout.splitlines()[-1] == "0 []"
