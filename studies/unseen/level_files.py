"""Files of an adapter that `pack --texts --target-bytes` tries, and the one that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rankcast.adapters.arrays import load_tensors
from rankcast.codec.coded_levels import CodedLevels
from rankcast.codec.container import Container
from rankcast.codec.feedback import pack_curved
from rankcast.codec.packing import Source
from rankcast.codec.planner import pack_within
from rankcast.codec.target import pack_into
from rankcast.errors import InfeasibleDeadlineError, InfeasibleSizeError
from rankcast.learner.curvature import curvatures_of
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.measured_levels import measure_levels


def files_with_levels(
    learner: TransformerLearner,
    source: Source,
    target_bytes: int,
    *,
    n_texts: int,
    n_curvature: int,
    loss_of: Callable[[Container], float],
) -> dict[str, Container]:
    """Return files of at most so many bytes, by planner; none where none fits.

    Args:
        learner: with the adapter's model.
        source: the adapter, with steps that suit its sensitivity.
        target_bytes: of the whole file.
        n_texts: training texts on which levels are measured.
        n_curvature: training texts on which the curvature of the loss is measured.
        loss_of: tells which of several files `pack` takes.

    Returns:
        `better`: of the two files without levels; `alone`: by levels beside the whole adapter;
        `levels`: by levels measured both ways; `curved`: rounded by curvature; `three`: the best of
        `better` and `levels`; `pack`: the best of these and `curved`.
    """
    budget = 8.0 * target_bytes
    ways = (lambda: pack_into(source, target_bytes), lambda: pack_within(source, budget))
    better = min(filter(None, map(_made, ways)), key=loss_of, default=None)
    if better is None:
        return {}
    load_tensors(learner.adapter, source.tensors)
    levels = measure_levels(
        learner, AdapterSnapshot(learner.adapter), CodedLevels.near(source, budget),
        better.tensors(), n_texts=n_texts,
    )  # fmt: skip
    found = {
        "better": better,
        "alone": _made(lambda: replace(levels, beside=levels.alone).file(budget)),
        "levels": _made(lambda: levels.file(budget)),
    }
    load_tensors(learner.adapter, source.tensors)
    curvatures = curvatures_of(learner, n_curvature)
    found["curved"] = _made(lambda: pack_curved(source, curvatures, budget))
    found["three"] = min(filter(None, (better, found["levels"])), key=loss_of)
    found["pack"] = min(filter(None, (found["three"], found["curved"])), key=loss_of)
    return {planner: file for planner, file in found.items() if file is not None}


def _made(make: Callable[[], Container]) -> Container | None:
    try:
        return make()
    except (InfeasibleSizeError, InfeasibleDeadlineError):
        return None
