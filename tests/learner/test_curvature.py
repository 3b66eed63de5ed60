"""The curvature of the loss at an adapter, against single gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from helpers.language_models import learner_of, save_language_model, write_questions
from helpers.models import randomise
from rankcast.adapters.arrays import tensors_of
from rankcast.errors import DataError
from rankcast.learner import curvature
from rankcast.learner.curvature import curvatures_of
from rankcast.learner.transformer import TransformerLearner
from studies.baselines.canonical import balance


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> TransformerLearner:
    folder = tmp_path_factory.mktemp("curvature")
    made = learner_of(save_language_model(folder / "base"), write_questions(folder / "texts.jsonl"))
    randomise(made.adapter, 0, scale=0.5)
    balance(made.adapter)
    return made


def whole(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(torch.block_diag(*map(torch.from_numpy, blocks)))


def test_tokens_count_by_what_the_adapter_does_there(learner: TransformerLearner) -> None:
    """The matrices are sums over tokens of x·xᵀ|Lᵀg|² and g·gᵀ|Rx|², scaled to E[|x|²|g|²]."""
    n = len(learner.data.train)
    found = list(curvatures_of(learner, n))
    layer, factors = learner.adapter.layers[0], tensors_of(learner.adapter).factors[0]
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(_: object, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        x = given[0].detach()
        out.register_hook(lambda g: seen.append((x.flatten(0, 1).numpy(), g.flatten(0, 1).numpy())))

    learner.adapter.model.eval()
    hook = layer.register_forward_hook(keep)
    texts, size = np.random.default_rng(0).permutation(n), learner.config.batch_size
    for start in range(0, n, size):
        chosen = texts[start : start + size]
        for loss in learner.loss_parts(chosen):
            (loss * len(chosen)).backward()
    hook.remove()
    learner.adapter.model.zero_grad()
    inputs = sum(np.einsum("t,ti,tj", np.square(g @ factors.left).sum(1), x, x) for x, g in seen)
    outputs = sum(
        np.einsum("t,ti,tj", np.square(x @ factors.right.T).sum(1), g, g) for x, g in seen
    )
    both = sum((np.square(x).sum(1) * np.square(g).sum(1)).sum() for x, g in seen) / n
    for blocks, expected in ((found[0].right, inputs), (found[0].left, outputs)):
        scaled = expected * np.sqrt(both) / np.trace(expected)
        assert whole(blocks) == pytest.approx(scaled, rel=1e-3, abs=float(1e-5 * scaled.max()))


def test_wide_matrices_are_blocks(
    learner: TransformerLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = list(curvatures_of(learner, 8))
    total = sum(p.d_in + p.d_out for p in learner.layout.projections)
    monkeypatch.setattr(curvature, "NARROWEST", 2)
    monkeypatch.setattr(curvature, "MOST_NUMBERS", 12 * total)
    for one, cut in zip(full, curvatures_of(learner, 8), strict=True):
        for blocks, parts in ((one.left, cut.left), (one.right, cut.right)):
            (matrix,), starts = blocks, np.cumsum([0, *[len(p) for p in parts]])
            assert max(len(p) for p in parts) <= 12
            for start, part in zip(starts, parts, strict=False):
                own = slice(start, start + len(part))
                assert part == pytest.approx(
                    matrix[own, own], rel=1e-4, abs=float(1e-6 * matrix.max())
                )


def test_the_learner_stays_as_it_is(learner: TransformerLearner) -> None:
    learner.adapter.model.train()
    before, told = tensors_of(learner.adapter), []
    first = list(curvatures_of(learner, 10, lambda done, total: told.append((done, total))))
    again = list(curvatures_of(learner, 10))
    assert told[-1] == (10, 10)
    assert learner.adapter.model.training
    assert all(not layer._forward_hooks for layer in learner.adapter.layers)
    assert all(p.grad is None for p in learner.adapter.model.parameters())
    for one, other in zip(before.factors, tensors_of(learner.adapter).factors, strict=True):
        assert np.array_equal(one.left, other.left)
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.right, other.right, strict=True))


def test_in_parts_it_is_the_same(
    learner: TransformerLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for a projection at a time: as many passes as projections, and equal matrices."""
    told: list[tuple[int, int]] = []
    at_once = list(curvatures_of(learner, 8))
    monkeypatch.setattr(curvature, "MOST_AT_ONCE", 1)
    parts = curvatures_of(learner, 8, lambda done, total: told.append((done, total)))
    for one, other in zip(at_once, parts, strict=True):
        for blocks, own in ((one.left, other.left), (one.right, other.right)):
            assert own[0] == pytest.approx(blocks[0], rel=1e-4, abs=float(1e-6 * blocks[0].max()))
    assert told[-1] == (8 * learner.layout.n_projections,) * 2


def test_no_text_is_refused(learner: TransformerLearner) -> None:
    with pytest.raises(DataError, match="at least one text"):
        curvatures_of(learner, 0)
