"""Damaged containers: refused with an error of ours, in little memory, and never an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from helpers.mutations import try_mutants
from rankcast.codec.container import Container

N_MUTANTS = 3000


def small(lean: bool) -> Container:
    modules = {"classifier.weight": (2, 24), "classifier.bias": (2,)}
    return packed(random_adapter(0, modules=modules), lean=lean)


def of_several_segments(lean: bool) -> Container:
    """Return a file with tensors of its own, whole numbers, and pieces."""
    tensors = random_adapter(0, modules={"a.gate": (60,), "a.matrix": (2, 80), "head": (3, 8)})
    modules = {**tensors.modules, "places": np.arange(-3, 9)}
    modules["a.gate"] = 5 + modules["a.gate"]
    own = dict.fromkeys(modules, "own") | {"head": "full"}
    tensors = replace(tensors, modules=modules, carriage=own, config={"use_dora": True})
    return packed(tensors, segment=150, lean=lean)


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(("make", "n"), [(small, N_MUTANTS), (of_several_segments, 1000)])
def test_no_damage_crashes_or_yields_an_adapter(
    make: Callable[[bool], Container], n: int, lean: bool
) -> None:
    outcome = try_mutants(make(lean).to_bytes(), n, seed=0)
    assert sum(outcome.values()) == n
    assert outcome["refused"] > 0.75 * n
    # Chunks with digests made to fit decode to something now and then: only a signature helps.
    assert outcome["forged"] > 0
