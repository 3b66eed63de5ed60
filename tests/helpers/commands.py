"""The command line as a person calls it, and settings of a quick run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from rankcast.cli.main import main


@dataclass(frozen=True)
class Call:
    """Calls the command line inside the test's process; see the fixture `call`."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *args: str) -> tuple[int, str, str]:
        """Return exit status, standard output and standard error."""
        with pytest.raises(SystemExit) as stopped:
            main(args)
        out, err = self.capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    def ok(self, *args: str) -> str:
        """Return the standard output of a command that succeeds."""
        status, out, err = self(*args)
        assert status == 0, err
        return out

    def refused(self, *args: str) -> str:
        """Return what a command says that does nothing, because of what it was given."""
        status, out, err = self(*args)
        assert status == 2, out + err
        return err


def fresh_python(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, which has imported nothing yet."""
    return subprocess.run(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", code], check=check, capture_output=True, text=True
    )


SMALL = {
    "horizon": 3,
    "steps": 12,
    "eval_every": 5,
    "checkpoint_every": 1,
    "data.max_train": 64,
    "data.max_validation": 16,
    "data.max_test": 16,
    "finetune.batch_size": 8,
    "training.gradient_steps": 3,
    "training.warm_up_steps": 3,
    "training.teacher.plans": 16,
    "policy.diffusion.inference_steps": 3,
    "policy.diffusion.batch_size": 8,
    "policy.hidden": 16,
    "policy.actor_hidden": 16,
}
"""Overrides with which the preset `tiny` trains for a second."""
TINY = ("tiny", *(x for k, v in SMALL.items() for x in (f"--{k.replace('_', '-')}", str(v))))
"""The same as words of a command."""
