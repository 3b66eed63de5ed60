from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankcast.policy.rank_code import bin_width, decode, dequantise, encode

r_maxes = st.integers(1, 256)


@st.composite
def rank_vectors(draw: st.DrawFn) -> tuple[Tensor, int]:
    r_max = draw(r_maxes)
    ranks = draw(st.lists(st.integers(0, r_max), min_size=1, max_size=40))
    return torch.tensor(ranks), r_max


@given(rank_vectors(), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_noise_inside_the_bin_never_changes_a_rank(
    vector: tuple[Tensor, int], width_fraction: float, seed: int
) -> None:
    ranks, r_max = vector
    generator = torch.Generator().manual_seed(seed)
    noisy = dequantise(encode(ranks, r_max), r_max, generator, width_fraction)
    assert torch.equal(decode(noisy, r_max), ranks)


@given(r_maxes, st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_every_code_decodes_to_the_nearest_rank(r_max: int, code: list[float]) -> None:
    values = torch.tensor(code)
    ranks = decode(values, r_max)
    distance = (encode(ranks, r_max) - values.clamp(-1, 1)).abs()
    assert (distance <= bin_width(r_max) / 2 + 1e-6).all()


@given(r_maxes, st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=40))
@settings(max_examples=80, deadline=None)
def test_decoding_is_monotone(r_max: int, code: list[float]) -> None:
    ranks = decode(torch.tensor(sorted(code)), r_max)
    assert (ranks.diff() >= 0).all()
