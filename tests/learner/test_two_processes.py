from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_process_run import CONFIG, train, train_to_size

from helpers.waiting import DEADLOCK_S


def outcomes(folder: Path) -> list[Any]:
    """Return what each of two processes saw."""
    script = Path(__file__).with_name("two_process_run.py")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(script), str(folder)),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        command, env=environment, capture_output=True, text=True, timeout=DEADLOCK_S, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_see_the_same_and_learn_what_one_does(tmp_path: Path) -> None:
    first, second = outcomes(tmp_path)
    assert first["n_processes"] == second["n_processes"] == 2
    for key in ("losses", "right", "evaluation_loss", "next_text", "sized_losses", "sized_file"):
        assert first[key] == second[key]
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name])

    one = train(CONFIG) | train_to_size(CONFIG)
    assert one["n_processes"] == 1
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["sized_losses"], one["sized_losses"], rtol=1e-3, atol=1e-4)
    assert first["right"] == one["right"]
    assert first["evaluation_loss"] == pytest.approx(one["evaluation_loss"], rel=1e-4)
    assert first["next_text"] == one["next_text"]
    for name, tensor in first["weights"].items():
        torch.testing.assert_close(tensor, one["weights"][name], rtol=1e-3, atol=2e-4)
