"""Damaged containers: refused with an error of ours, in little memory, and never an adapter."""

from __future__ import annotations

from helpers.codec import packed, random_adapter
from helpers.mutations import try_mutants

N_MUTANTS = 3000


def test_no_damage_crashes_or_yields_an_adapter() -> None:
    tensors = random_adapter(0, modules={"classifier.weight": (2, 24), "classifier.bias": (2,)})
    outcome = try_mutants(packed(tensors).to_bytes(), N_MUTANTS, seed=0)
    assert sum(outcome.values()) == N_MUTANTS
    assert outcome["refused"] > 0.75 * N_MUTANTS
    # Chunks with digests made to fit decode to something now and then: only a signature helps.
    assert outcome["forged"] > 0
