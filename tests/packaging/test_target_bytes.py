"""pack --target-bytes: a file of at most so many bytes, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rankcast
from helpers.codec import random_adapter
from helpers.commands import Call
from rankcast.codec.container import load
from rankcast.codec.formats.peft import read_peft, write_peft
from rankcast.codec.losses import lost_energy
from rankcast.errors import ConfigError, InfeasibleSizeError
from rankcast.packaging.pack import Cost


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    widths = ((48, 32), (32, 96), (32, 32))
    tensors = random_adapter(0, widths, (8, 8, 8), {"classifier.weight": (2, 32)}, size=0.3)
    return write_peft(tensors, tmp_path / "lora", base_model_name="tiny", task_type="SEQ_CLS")


def test_the_file_fits_and_says_what_is_lost(lora: Path, tmp_path: Path, call: Call) -> None:
    file, shares = tmp_path / "a.rcast", []
    for target in (400, 1000, 3000):
        out = call.ok("pack", str(lora), "-o", str(file), "--target-bytes", str(target), "--json")
        told = json.loads(out)
        assert file.stat().st_size <= target
        assert told["bits"] == 8 * file.stat().st_size
        expected = lost_energy(read_peft(lora)[0], load(file).tensors())
        assert told["lost_energy"] == pytest.approx(expected)
        assert (told["loss"], told["loss_before"], told["accuracy_before"]) == (None, None, None)
        shares.append(told["lost_energy"])
    assert 1 > shares[0] > shares[1] > shares[2] > 0
    said = call.ok("pack", str(lora), "-o", str(file), "--target-bytes", "3000")
    assert f"{shares[2]:.1%} of the update's energy is lost" in said
    assert "in 1 chunk," in said


def test_a_budget_in_bits_is_packed_as_before(lora: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "a.rcast"
    told = json.loads(
        call.ok("pack", str(lora), "-o", str(file), "--budget-bits", "8000", "--json")
    )
    expected = lost_energy(read_peft(lora)[0], load(file).tensors())
    assert told["lost_energy"] == pytest.approx(expected)
    assert load(file) == rankcast.pack(lora, budget_bits=8000)


def test_an_impossible_size_says_which_is_possible(lora: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "a.rcast"
    with pytest.raises(InfeasibleSizeError) as refused:
        rankcast.pack(lora, target_bytes=50)
    smallest = refused.value.smallest_bytes
    said = call.refused("pack", str(lora), "-o", str(file), "--target-bytes", "50")
    assert f"has {smallest} bytes" in said
    assert "rankcast qat" not in said  # which trains for no such size, either
    trainable = InfeasibleSizeError(900, 300, trainable=True)
    assert "rankcast qat ADAPTER --target-bytes 300" in str(trainable)
    assert not file.exists()
    call.ok("pack", str(lora), "-o", str(file), "--target-bytes", str(smallest))
    assert file.stat().st_size == smallest


@pytest.mark.parametrize(
    "other",
    [
        ["--quality", "fine"],
        ["--budget-bits", "1e5"],
        ["--snr-db", "5", "--bandwidth-hz", "1e5", "--deadline-s", "1"],
    ],
)
def test_two_wishes_for_the_size_are_refused(
    other: list[str], lora: Path, tmp_path: Path, call: Call
) -> None:
    said = call.refused("pack", str(lora), "-o", str(tmp_path / "a"), "--target-bytes", "9", *other)
    assert "one of" in said


def test_options_that_choose_steps_themselves_are_refused(lora: Path) -> None:
    with pytest.raises(ConfigError, match="one of"):
        rankcast.pack(lora, target_bytes=1000, quality="good")
    with pytest.raises(ConfigError, match="one of"):
        rankcast.pack(lora, target_bytes=1000, budget_bits=8000)
    with pytest.raises(ConfigError, match="--planned"):
        rankcast.pack(lora, target_bytes=1000, planned=True)
    with pytest.raises(ConfigError, match="previous file"):
        rankcast.pack(lora, target_bytes=1000, previous=rankcast.pack(lora))


def test_measured_files_fit_and_stand_beside_the_unrounded_adapter(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    file, costs = tmp_path / "a.rcast", list[Cost]()
    named = ("pack", str(trained), "-o", str(file), "--measure", "--level-texts", "0",
             "--target-bytes")  # fmt: skip
    with pytest.raises(InfeasibleSizeError) as refused:
        rankcast.pack(trained, target_bytes=100, measure=True, level_texts=0)
    smallest = refused.value.smallest_bytes
    call.ok(*named, str(smallest))
    assert file.stat().st_size <= smallest

    told = json.loads(call.ok(*named, "4000", "--json"))
    assert smallest < file.stat().st_size <= 4000
    last = load(file).header.chunks[-1]
    assert (told["loss"], told["accuracy"]) == (last.loss, last.accuracy)
    fine = rankcast.pack(trained, budget_bits=1e12, measure=True, on_cost=costs.append)
    assert told["loss_before"] == pytest.approx(fine.header.chunks[-1].loss, abs=1e-4)
    assert told["accuracy_before"] == pytest.approx(fine.header.chunks[-1].accuracy, abs=1e-5)
    assert [cost.loss for cost in costs] == [told["loss_before"]]
    assert told["lost_energy"] > 0
    assert costs[0].lost_energy == pytest.approx(0, abs=1e-5)
    said = call.ok(*named, "4000")
    assert f"Loss {told['loss_before']:.3f} -> {last.loss:.3f}" in said
    assert "energy" not in said


@pytest.mark.parametrize("target_bytes", [1500, 4000])
def test_of_two_ways_the_better_is_kept(trained: Path, target_bytes: int) -> None:
    losses = [
        rankcast.pack(trained, measure=True, **how).header.chunks[-1].loss
        for how in ({"target_bytes": target_bytes}, {"budget_bits": 8 * target_bytes})
    ]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0] <= losses[1]
