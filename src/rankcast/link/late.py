"""SciPy, imported when a formula needs it: a device on a plain link does without its 125 MB."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from rankcast.errors import ConfigError


@cache
def scipy(part: str) -> Any:
    """Return a module of SciPy.

    Args:
        part: such as `special`.

    Raises:
        ConfigError: SciPy is not installed.
    """
    try:
        return importlib.import_module(f"scipy.{part}")
    except ImportError as error:
        raise ConfigError("This needs SciPy: pip install 'rankcast[link]'.") from error
