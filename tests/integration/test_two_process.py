from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_process_run import CONFIG, train


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_process_run.py")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(script), str(folder)),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_both_processes_see_the_same(outcomes: Any) -> None:
    first, second = outcomes
    assert first["n_processes"] == second["n_processes"] == 2
    for key in ("losses", "right", "evaluation_loss", "next_text"):
        assert first[key] == second[key]
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name])


def test_two_processes_learn_what_one_does(outcomes: Any) -> None:
    two, one = outcomes[0], train(CONFIG)
    assert one["n_processes"] == 1
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    assert two["right"] == one["right"]
    assert two["evaluation_loss"] == pytest.approx(one["evaluation_loss"], rel=1e-4)
    assert two["next_text"] == one["next_text"]
    for name, tensor in two["weights"].items():
        torch.testing.assert_close(tensor, one["weights"][name], rtol=1e-3, atol=2e-4)
