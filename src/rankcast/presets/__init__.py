"""Presets of a run, as YAML files in this folder; the first line of each describes it.

How a command offers every setting with its meaning and default:

    config = load_preset(name, typed_first(args))   # what other defaults depend on
    config = tyro.cli(RunConfig, default=config, args=args)
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rankcast.config.plain import from_plain, to_plain
from rankcast.config.run import RunConfig
from rankcast.errors import ConfigError, nearest

FOR_ENCODERS = ("demo", "sst2-minilm")
"""Presets whose learning rates suit a small encoder that classifies."""


def preset_names() -> dict[str, str]:
    """Return the name of every preset with its description."""
    texts = {
        Path(file.name).stem: file.read_text("utf-8")
        for file in files(__name__).iterdir()
        if file.name.endswith(".yaml")
    }
    return {name: texts[name].partition("\n")[0].lstrip("# ") for name in sorted(texts)}


def load_preset(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a preset, or a YAML file, with some settings replaced.

    `seed` is also the seed of the data and of fine-tuning, and `steps` the length of the learning
    rate schedule, unless those are set themselves.

    Args:
        name_or_path: a name of `preset_names`, or a file.
        overrides: full names to values, such as `{"finetune.lr": 1e-3}`.

    Raises:
        ConfigError: no such preset; an unknown setting, with the nearest; a value of the wrong
            type or out of range.
    """
    raw = read_preset(name_or_path)
    for name, value in (overrides or {}).items():
        _set(raw, name, value)
    config = config_of(raw)
    _default(raw, "data", "seed", config.seed)
    _default(raw, "finetune", "seed", config.seed)
    _default(raw, "finetune", "total_steps", config.total_steps)
    return config_of(raw)


def config_of(raw: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that nested mappings describe, such as those in a checkpoint.

    Raises:
        ConfigError: an unknown setting, with the nearest; a value of the wrong type or range.
    """
    return from_plain(RunConfig, raw)


def typed_first(args: Sequence[str]) -> dict[str, int]:
    """Return the settings on a command line that defaults of other settings follow from."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("seed", "steps", "horizon"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    try:
        return vars(parser.parse_known_args(list(args))[0])
    except argparse.ArgumentError:
        return {}  # what is wrong is said where all settings are read


def to_yaml(config: RunConfig) -> str:
    """Return a configuration as YAML that `load_preset` reads."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def read_preset(name_or_path: str) -> dict[str, Any]:
    """Return the settings in a preset or a YAML file, as they stand there.

    Raises:
        ConfigError: no such preset or file, or no readable YAML in it.
    """
    path, names = Path(name_or_path), preset_names()
    if name_or_path in names:
        text = (files(__name__) / f"{name_or_path}.yaml").read_text("utf-8")
    elif path.is_file():
        text = path.read_text("utf-8", errors="replace")
    else:
        raise ConfigError(
            f"There is no preset or file {name_or_path!r}{nearest(name_or_path, names)}. "
            f"Presets: {', '.join(names)}. Settings come after the preset."
        )
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name_or_path} is no readable YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{name_or_path} must hold settings by name, got {type(raw).__name__}.")
    return raw


def _set(raw: dict[str, Any], name: str, value: Any) -> None:
    """Set a nested value by its full name."""
    *parents, leaf = name.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{parent} must hold settings by name, got {raw!r}.")
    raw[leaf] = value


def _default(raw: dict[str, Any], section: str, name: str, value: Any) -> None:
    """Set a nested value unless there is one."""
    raw.setdefault(section, {}).setdefault(name, value)
