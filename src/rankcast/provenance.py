"""Say what a result was made with, so that it can be made again."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = (
    "rankcast",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "scipy",
    "gymnasium",
    "sionna-no-rt",
)


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def describe_device(device: str | None = None) -> str:
    """Name a device with its model, such as `cuda:0 (NVIDIA H200)` or `cpu (x86_64, Linux)`.

    Args:
        device: as torch names it. None: the GPU if this process has loaded torch and there is one,
            else the CPU.
    """
    torch: Any = sys.modules.get("torch")
    if device is None:
        device = "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
    if torch is not None and device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {platform.system()})"
