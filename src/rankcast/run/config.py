"""Everything that decides a run, as one frozen record; presets as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rankcast.errors import ConfigError
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.datasets import DatasetConfig
from rankcast.policy.airllm import PolicyConfig
from rankcast.policy.training import TrainingConfig
from rankcast.run.link import LinkConfig
from rankcast.run.presets import read_preset
from rankcast.run.schema import build, check_key, to_plain


@dataclass(frozen=True)
class RunConfig:
    """A run from the first text to the last picture.

    Attributes:
        data: what is learned from.
        finetune: the base model and how its adapters train.
        link: the radio.
        policy: what the policy is made of.
        training: Algorithm 1.
        steps: training steps in all, rounded up to whole episodes.
        horizon: T_env, steps of an episode.
        eval_every: steps between two evaluations.
        eval_max_examples: texts of such an evaluation; None for all.
        checkpoint_every: episodes between two checkpoints.
        early_stopping: end as Sec. V-A does.
        patience: evaluations without improvement that early stopping allows.
        tensorboard: also log for TensorBoard.
        seed: of everything whose own seed is not set.
        output: folder of the run.

    Raises:
        ConfigError: a count below 1.
    """

    data: DatasetConfig = field(default_factory=DatasetConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    steps: int = 300
    horizon: int = 15
    eval_every: int = 100
    eval_max_examples: int | None = None
    checkpoint_every: int = 5
    early_stopping: bool = False
    patience: int = 5
    tensorboard: bool = True
    seed: int = 0
    output: str = "runs/run"

    def __post_init__(self) -> None:
        """Check every count."""
        for name in ("steps", "horizon", "eval_every", "checkpoint_every", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")


def load_preset(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a preset, or a YAML file, with some settings replaced.

    Args:
        name_or_path: `tiny`, `demo`, `sst2-minilm`, `paper`, or a file.
        overrides: full names to values, such as `{"finetune.lr": 1e-3}`.

    Raises:
        ConfigError: no such preset; an unknown key, with the nearest; a value of the wrong type.
        LinkError: an impossible link.
    """
    raw = read_preset(name_or_path)
    for key, value in (overrides or {}).items():
        check_key(RunConfig, key)
        _set(raw, key, value)
    return resolve(raw)


def resolve(raw: dict[str, Any]) -> RunConfig:
    """Build a run's configuration; what depends on other settings is filled in.

    `seed` is also the seed of the data and of fine-tuning, and `steps` the length of the learning
    rate schedule, unless those are set themselves.
    """
    top = {key: value for key, value in raw.items() if not isinstance(value, Mapping)}
    whole = build(RunConfig, top)
    episodes = -(-whole.steps // whole.horizon)
    _default(raw, "data", "seed", whole.seed)
    _default(raw, "finetune", "seed", whole.seed)
    _default(raw, "finetune", "total_steps", episodes * whole.horizon)
    return build(RunConfig, raw)


def to_yaml(config: RunConfig) -> str:
    """Return a configuration as YAML that `load_preset` reads."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a nested value by its full name."""
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = raw.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{parent} must hold settings by name, got {inner!r}.")
        raw = inner
    raw[leaf] = value


def _default(raw: dict[str, Any], section: str, key: str, value: Any) -> None:
    """Set a nested value unless there is one."""
    inner = raw.setdefault(section, {})
    if isinstance(inner, dict):
        inner.setdefault(key, value)
