"""Files of an adapter that `pack --texts --target-bytes` tries, and the one that it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from rankcast.adapters.arrays import load_tensors
from rankcast.codec.coded_levels import CodedLevels
from rankcast.codec.container import Container
from rankcast.codec.feedback import CurvedAdapter, best_within
from rankcast.codec.packing import Source
from rankcast.codec.planner import pack_within
from rankcast.codec.target import pack_into
from rankcast.errors import InfeasibleDeadlineError, InfeasibleSizeError
from rankcast.learner.curvature import curvatures_of
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.gain import GainSearch
from rankcast.packaging.measured_levels import measure_levels

PLANNERS = (
    "better", "alone", "levels", "curved", "three",
    "larger better", "larger levels", "larger curved", "pack", "four",
)  # fmt: skip


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
        `better` and `levels`. All these are of the adapter as large as it is; `larger better`,
        `larger levels` and `larger curved` of it at the gain that suits. `pack`: the best of
        `three` and the first two of them; `four`: of all.
    """
    budget = 8.0 * target_bytes
    load_tensors(learner.adapter, source.tensors)
    unrounded = AdapterSnapshot(learner.adapter)
    search = GainSearch(learner, unrounded)
    found: dict[str, Container | None] = {}

    def best(*names: str) -> Container | None:
        return min(filter(None, (found[name] for name in names)), key=loss_of, default=None)

    def made(name: str, fit: Callable[[float, float], Container]) -> None:
        """Make a file at a gain of 1, and one at the gain that suits."""
        found[name] = _made(lambda: fit(1.0, budget))
        found[f"larger {name}"] = _made(lambda: fit(search.suits(fit, budget), budget))

    made("by energy", lambda gain, bits: pack_into(source.scaled(gain), bits / 8))
    made("one step", lambda gain, bits: pack_within(source.scaled(gain), bits))
    found["better"] = best("by energy", "one step")
    found["larger better"] = best("larger by energy", "larger one step")
    near = best("better", "larger better")
    if near is None:
        return {}
    load_tensors(learner.adapter, source.tensors)
    levels = measure_levels(
        learner, unrounded, CodedLevels.near(source, budget), near.tensors(), n_texts=n_texts
    )
    found["alone"] = _made(lambda: replace(levels, beside=levels.alone).file(budget))
    made("levels", lambda gain, bits: levels.scaled(gain).file(bits))
    load_tensors(learner.adapter, source.tensors)
    with closing(CurvedAdapter(source, curvatures_of(learner, n_curvature))) as curved:
        made("curved", lambda gain, bits: best_within(curved, bits, gain))
    found["three"] = best("better", "levels")
    found["pack"] = best("three", "larger better", "larger levels")
    found["four"] = best("pack", "curved", "larger curved")
    return {name: file for name in PLANNERS if (file := found.get(name)) is not None}


def _made(make: Callable[[], Container]) -> Container | None:
    try:
        return make()
    except (InfeasibleSizeError, InfeasibleDeadlineError):
        return None
