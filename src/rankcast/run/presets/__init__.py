"""The presets: YAML files in this folder, the first line of each a description."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rankcast.errors import ConfigError, nearest


def preset_names() -> dict[str, str]:
    """Return the name of every preset with its description."""
    found = sorted(
        (p for p in files(__name__).iterdir() if p.name.endswith(".yaml")), key=lambda p: p.name
    )
    return {Path(p.name).stem: p.read_text("utf-8").partition("\n")[0].lstrip("# ") for p in found}


def read_preset(name_or_path: str) -> dict[str, Any]:
    """Return the settings in a preset or a YAML file, as they stand there.

    Raises:
        ConfigError: no such preset or file, or no readable YAML in it.
    """
    path = Path(name_or_path)
    names = preset_names()
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
