"""A LoRA as strips and back."""

import numpy as np
import pytest

from helpers.codec import random_adapter
from studies.shared.strips import rms, strips_of, with_strips


@pytest.mark.parametrize("ranks", [(4, 3), (0, 2), (1, 0)])
def test_other_numbers_come_back_in_their_places(ranks: tuple[int, int]) -> None:
    tensors = random_adapter(0, ranks=ranks)
    strips = strips_of(tensors)
    assert len(strips) == 2 * sum(ranks)
    doubled = with_strips(tensors, [2 * strip for strip in strips])
    for own, other in zip(tensors.factors, doubled.factors, strict=True):
        assert np.array_equal(2 * own.left, other.left)
        assert np.array_equal(2 * own.right, other.right)


def test_root_mean_square_by_hand() -> None:
    assert rms([np.array([3.0], np.float32), np.array([4.0, 0.0, 0.0], np.float32)]) == 2.5
