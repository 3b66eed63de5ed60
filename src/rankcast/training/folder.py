"""The folder of a run, whose files are written whole or not at all.

| file | holds |
|---|---|
| `config.yaml` | every setting, resolved |
| `log.jsonl` | a row for each step, episode and evaluation |
| `checkpoint.pt` | all that continuing needs |
| `policy.pt` | all that `rankcast allocate` needs: policy, belief, layout |
| `adapter/` | the adapter at full rank, for `rankcast.adapters.export.load_adapter` |
| `adapter.rcast` | its file, of a run for a file of a given size |
| `adapter-N.rcast` | likewise, of a smaller size N (`codec.smaller_bytes`) |
| `tensorboard/` | the rows as events for TensorBoard |
| `result.json` | the results, with versions, seeds, command and times |
| `comparison.json`, `ranks.png`, `learning.png` | allocators beside each other |
"""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.config.run import RunConfig
from rankcast.errors import CheckpointError, ConfigError
from rankcast.files import put_file, replace_file
from rankcast.presets import load_preset, to_yaml

_FORMAT = 1


class RunFolder:
    """The files of one run; the table above says what each holds.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.log = path / "log.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.policy = path / "policy.pt"
        self.adapter = path / "adapter"
        self.file = path / "adapter.rcast"
        self.tensorboard = path / "tensorboard"
        self.result = path / "result.json"
        self.comparison = path / "comparison.json"

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
        files = self.log, self.checkpoint, self.policy, self.file, self.result, self.comparison
        smaller = self.path.glob(self.smaller_file("*").name)
        for file in (*files, *(x for x in smaller if x.stem.rpartition("-")[2].isdecimal())):
            file.unlink(missing_ok=True)
        for folder in (self.adapter, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        put_file(self.config, to_yaml(config).encode())

    def smaller_file(self, target_bytes: int | str) -> Path:
        """Return where the file of a size below that of `file` is."""
        return self.path / f"adapter-{target_bytes}.rcast"

    def files(self, config: RunConfig) -> list[Path]:
        """Return where the files of a run for files of given sizes are, the largest first."""
        return [self.file, *map(self.smaller_file, config.codec.smaller_bytes)]

    def load_config(self, *, of_levels: bool = False) -> RunConfig:
        """Return the configuration of the run in this folder, which trained a policy.

        Args:
            of_levels: also take a run whose policy plans the levels of its files
                (`codec.plan_episodes`).

        Raises:
            CheckpointError: there is none, or it trained one file and no such policy.
        """
        if not self.config.is_file():
            raise CheckpointError(
                f"{self.path} holds no run: it has no {self.config.name}. Make one with "
                f"`rankcast train … --output {self.path}`, or name another folder."
            )
        config = load_preset(str(self.config))
        if config.codec.target_bytes is not None and not (of_levels and config.codec.plan_episodes):
            trained = "a policy of its levels" if config.codec.plan_episodes else "no policy"
            raise CheckpointError(
                f"The run in {self.path} trained files of given sizes and {trained}. Use "
                f"{self.file}: see rankcast info, export and publish; rankcast allocate --output "
                f"writes what a policy of levels plans."
            )
        return replace(config, output=str(self.path))

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a mapping for people and machines."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        put_file(path, text.encode())


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
