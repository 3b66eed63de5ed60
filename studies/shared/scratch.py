"""Folders that several jobs of a study share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.harness.spec import RunContext
from studies.harness.store import fingerprint


def common_folder(kind: str, name: str, settings: Mapping[str, Any], context: RunContext) -> Path:
    """Return a folder that belongs to no job, for what several jobs need and any of them may make.

    Args:
        kind: of what is in it.
        name: of the job that is there to make it.
        settings: of that job; with others it is another folder.
        context: of the job that asks.
    """
    return context.scratch.parent.parent / kind / name / fingerprint(settings)
