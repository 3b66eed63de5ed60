"""Files of adapters that were trained for prefixes: the largest that fits, and more behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from helpers.codec import random_adapter
from rankcast.codec.container import Container, pack_as_trained
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source, without_zeros
from rankcast.codec.prefixes import prefixes_within
from rankcast.codec.quantiser import Float32Array, dequantise
from rankcast.codec.tensors import Factors

N, WIDTH, EXPONENT = 12, 384, -18
PREFIXES = ((1,) * N, (2,) * N, (3,) * N)


def trained_source(seed: int = 0, zeros: float = 0.85) -> Source:
    """Return an adapter on its quantiser's grid, most of whose weights are zero."""
    rng = np.random.default_rng(seed)
    tensors = random_adapter(seed, ((WIDTH, WIDTH),) * N, (3,) * N)

    def rounded(values: Float32Array) -> Float32Array:
        kept = np.rint(values / np.std(values)) * (rng.random(values.shape) > zeros)
        return dequantise(kept.astype(np.int32), EXPONENT)

    factors = tuple(Factors(rounded(f.left), rounded(f.right)) for f in tensors.factors)
    coding = Coding(EXPONENT, (0,) * N, {}, PREFIXES, ((0,) * 3,) * N)
    return Source(replace(tensors, factors=factors), BaseModel("tiny"), {}, coding=coding)


def first_prefixes(source: Source, n: int) -> Container:
    """Return the file of the first prefixes and nothing else."""
    assert source.coding is not None
    ranks = source.coding.prefix_ranks[:n]
    cut = source.tensors.truncated(np.array(ranks[-1]))
    each = tuple(o[:r] for o, r in zip(source.coding.component_offsets, ranks[-1], strict=True))
    coding = replace(source.coding, prefix_ranks=ranks, component_offsets=each)
    return pack_as_trained(replace(source, tensors=cut), coding)


def test_prefixes_that_fit_are_sent_as_they_were_trained() -> None:
    source = trained_source()
    whole = first_prefixes(source, 3)
    found = prefixes_within(source, whole.n_bits)
    assert found is not None
    assert found.to_bytes() == whole.to_bytes()
    assert prefixes_within(source, first_prefixes(source, 1).n_bits - 1) is None
    assert prefixes_within(Source(random_adapter(0), BaseModel("tiny"), {}), 1e9) is None


def test_components_of_zeros_are_left_out_wherever_they_stand() -> None:
    source = trained_source()
    first, *others = source.tensors.factors
    left, right = first.left.copy(), first.right.copy()
    left[:, 0], right[0] = 0, 0
    tensors = replace(source.tensors, factors=(Factors(left, right), *others))
    assert source.coding is not None
    coding = replace(source.coding, component_offsets=((1, 2, 3), *((0,) * 3,) * (N - 1)))
    cut, trimmed = without_zeros(tensors, coding)
    assert cut.ranks.tolist() == [2] + [3] * (N - 1)
    np.testing.assert_array_equal(cut.factors[0].left, first.left[:, 1:])
    assert trimmed.component_offsets[0] == (2, 3)
    assert [ranks[:2] for ranks in trimmed.prefix_ranks] == [(0, 1), (1, 2), (2, 3)]
    # Without steps of their own their number is all that a file has, and only last ones go.
    cut, _ = without_zeros(tensors, replace(coding, component_offsets=()))
    assert cut.ranks.tolist() == [3] * N


def test_beyond_a_prefix_goes_what_fits_of_the_next_and_the_prefix_stays() -> None:
    source = trained_source()
    first, second = (first_prefixes(source, n).n_bits for n in (1, 2))
    ranks = []
    for budget in np.linspace(first + 800, second - 1, 4):
        file = prefixes_within(source, budget)
        assert file is not None
        assert file.n_bits <= budget
        (_, prefix), (_, whole) = file.decoded()
        assert prefix.ranks.tolist() == [1] * N
        assert set(whole.ranks.tolist()) == {1, 2}
        ranks.append(int(whole.ranks.sum()))
    assert ranks == sorted(ranks)
    assert N < ranks[0] < ranks[-1] < 2 * N
    bare = prefixes_within(source, first)  # no room for another chunk
    assert bare is not None
    assert len(bare.ladder) == 1
    assert bare.tensors().ranks.tolist() == [1] * N


def test_what_has_the_most_energy_for_its_weights_goes_first() -> None:
    source = trained_source()
    factors = list(source.tensors.factors)
    left, right = factors[4].left.copy(), factors[4].right.copy()
    left[:, 1] *= 3  # on the same grid
    factors[4] = Factors(left, right)
    source = replace(source, tensors=replace(source.tensors, factors=tuple(factors)))
    file = prefixes_within(source, first_prefixes(source, 1).n_bits + 800)
    assert file is not None
    assert file.tensors().ranks[4] == 2
