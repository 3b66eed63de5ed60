"""Experiments without jobs of their own: they show other experiments' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankcast.experiment.spec import Job, RunContext, Scale


def no_jobs(scale: Scale) -> Sequence[Job]:
    """Return nothing."""
    del scale
    return []


def nothing(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Never be called, for want of jobs."""
    raise AssertionError(job, context)
