"""What has to be known of a result to get it again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rankcast import __version__
from rankcast.run.config import RunConfig
from rankcast.run.schema import to_plain

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "gymnasium")


def provenance(config: RunConfig, command: Sequence[str], device: str) -> dict[str, Any]:
    """Return versions, seeds, command, machine and the whole configuration."""
    return {
        "seeds": {"run": config.seed, "data": config.data.seed, "finetune": config.finetune.seed},
        "command": " ".join(command),
        "device": _device_words(device),
        "threads": torch.get_num_threads(),
        "versions": {"rankcast": __version__, "python": platform.python_version()} | _versions(),
        "config": to_plain(config),
    }


def _device_words(device: str) -> str:
    """Name the device as a person would."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {platform.system()})"


def _versions() -> dict[str, str]:
    """Return the installed version of each package that results depend on."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
