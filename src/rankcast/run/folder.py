"""What lies in a run's folder, and how it gets there: whole or not at all.

| file | what |
|---|---|
| `config.yaml` | every setting, resolved |
| `log.jsonl` | a row for each step, episode and evaluation |
| `checkpoint.pt` | all that continuing needs |
| `policy.pt` | all that `rankcast allocate` needs: policy, belief, layout |
| `adapter/` | the adapter at full rank, for `rankcast.adapters.export.load_adapter` |
| `result.json` | what came out, with versions, seeds, command and times |
| `comparison.json`, `ranks.png`, `learning.png` | allocators beside each other |
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.errors import CheckpointError, ConfigError
from rankcast.files import replace_file
from rankcast.run.config import RunConfig, load_preset, to_yaml

_FORMAT = 1


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """The rows."""
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """All that continuing needs."""
        return self.path / "checkpoint.pt"

    @property
    def policy(self) -> Path:
        """All that allocating needs."""
        return self.path / "policy.pt"

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.path / "adapter"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def result(self) -> Path:
        """What came out."""
        return self.path / "result.json"

    @property
    def comparison(self) -> Path:
        """Allocators beside each other."""
        return self.path / "comparison.json"

    def refuse_other_run(self, *, overwrite: bool) -> None:
        """Check that no run would be lost.

        Raises:
            ConfigError: there is a run in the folder, and it is not to be replaced.
        """
        if self.config.exists() and not overwrite:
            raise ConfigError(
                f"{self.path} already holds a run. Continue it with --resume, replace it with "
                f"--overwrite, or name another folder with --output."
            )

    def begin(self, config: RunConfig) -> None:
        """Make the folder, empty it of an older run's files and write the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        for file in (self.log, self.checkpoint, self.policy, self.result, self.comparison):
            file.unlink(missing_ok=True)
        for folder in (self.adapter, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        replace_file(self.config, lambda partial: partial.write_text(to_yaml(config), "utf-8"))

    def load_config(self) -> RunConfig:
        """Return the configuration of the run in this folder.

        Raises:
            CheckpointError: there is none.
        """
        if not self.config.is_file():
            raise CheckpointError(
                f"{self.path} holds no run: it has no {self.config.name}. Make one with "
                f"`rankcast train … --output {self.path}`, or name another folder."
            )
        return replace(load_preset(str(self.config)), output=str(self.path))

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a mapping for people and machines."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        replace_file(path, lambda partial: partial.write_text(text, "utf-8"))


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested state: arrays, tensors, numbers, text, lists, tuples and dictionaries."""
    content = {"format": _FORMAT} | _to_tensors(dict(state))
    replace_file(path, lambda partial: torch.save(content, partial))


def load_state(path: Path) -> dict[str, Any]:
    """Return what `save_state` wrote, with tensors for arrays; no code in the file is run.

    Raises:
        CheckpointError: no such file, or a truncated or foreign one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"There is no {path}: the run has not come as far. Train it, or name another folder."
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} is truncated or no file of rankcast's ({reason}). "
            f"Restore it from a copy, or train again with --overwrite."
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} was written by another version of rankcast; this one reads format {_FORMAT}."
        )
    return state


def _to_tensors(state: Any) -> Any:
    """Replace every array by a tensor, which loads without running code."""
    if isinstance(state, dict):
        return {key: _to_tensors(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_to_tensors(value) for value in state)
    if isinstance(state, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(state))
    if isinstance(state, np.generic):
        return state.item()
    return state
