"""How much each component of an adapter matters, read off a model instead of learned from losses.

Shapes: `N` projections, `R` = r_max. Every function that returns scores returns (N, R), larger for
what matters more; `rankcast.allocation.scored.ScoredAllocator` makes plans of them. Batches are
what the model takes: mappings of keyword arguments, with labels where a loss is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.canonical import sorted_factors
from rankcast.adapters.svd import ElasticAdapter
from rankcast.errors import DataError, ModelError
from rankcast.finetune.batching import tokenise
from rankcast.finetune.objectives import IGNORED
from rankcast.finetune.texts import TextDataset
from rankcast.finetune.transformer import TransformerLearner
from rankcast.finetune.truncation import checked_moments, component_energies
from rankcast.records import FloatArray

KeywordBatch = Mapping[str, Tensor]


def spectral_scores(
    adapter: ElasticAdapter, second_moments: Sequence[Tensor] | None = None
) -> FloatArray:
    """Return the (N, R) squared singular values of each projection's update s·P Λ Q.

    They belong to the components as `rankcast.adapters.canonical.canonicalise` sorts them with the
    same second moments: call it before a plan made from them is put in force.

    Args:
        adapter: left as it is; all components take part, whatever ranks are in force.
        second_moments: E[x xᵀ] of each projection's input, (d_in, d_in) or its diagonal (d_in,);
            None weighs all directions alike.

    Raises:
        ModelError: second moments that do not fit the projections.
    """
    moments = checked_moments(adapter.layout, second_moments)
    rows: list[Tensor] = []
    for i, moment in enumerate(moments):
        P, lam, Q = (part.double().cpu() for part in adapter.components(i))
        _, values, right = sorted_factors(P, lam, Q, moment)
        rows.append(component_energies(values, right, moment))
    return adapter.scale**2 * torch.stack(rows).numpy()


def sensitivity_scores(
    adapter: ElasticAdapter, batches: Iterable[KeywordBatch], *, vectors: bool = True
) -> FloatArray:
    """Return (N, R) |λ·∂U/∂λ| of each component at full rank, averaged over batches.

    To first order, what setting a component's λ to zero changes the loss by. With `vectors` the
    mean of |p·∂U/∂p| over its column of P and its row of Q is added, as in AdaLoRA's importance.

    Differs from AdaLoRA: plain means over batches of a model that is not being trained, instead of
    a running mean times a running uncertainty.

    Args:
        adapter: a trained one, left as it is; run in eval mode.
        batches: with labels.
        vectors: whether P and Q count.

    Raises:
        DataError: no batch.
        ModelError: all scores are zero, because the adapter does nothing yet.
    """
    n, r_max = adapter.layout.n_projections, adapter.layout.r_max
    sums, n_batches = torch.zeros(n, r_max, dtype=torch.float64), 0
    training = adapter.model.training
    adapter.model.eval()
    try:
        with adapter.at_ranks([r_max] * n), torch.enable_grad():
            for batch in batches:
                sums += _sensitivities(adapter, adapter.model(**batch).loss, vectors=vectors)
                n_batches += 1
    finally:
        adapter.model.train(training)
    if n_batches == 0:
        raise DataError("Sensitivities need at least one batch.")
    if not sums.any():
        raise ModelError(
            "Every sensitivity is zero: the adapter is fresh and does nothing. Train it first."
        )
    return (sums / n_batches).numpy()


def weight_sensitivity(adapter: ElasticAdapter, batches: Iterable[KeywordBatch]) -> FloatArray:
    """Return (N,) mean squared gradient of a weight of each projection's P and Q.

    The diagonal of the empirical Fisher information, an estimate of the curvature of the loss, up
    to a factor that is the same for all projections. The adapter has to be balanced
    (`canonical.balance`).

    Args:
        adapter: a trained one, left as it is; run in eval mode under the ranks in force. A
            projection of rank 0 has a sensitivity of 0.
        batches: with labels.

    Raises:
        DataError: no batch.
    """
    n_batches = 0
    sums = np.zeros(adapter.layout.n_projections)
    training = adapter.model.training
    adapter.model.eval()
    alive = [(i, r) for i, r in enumerate(adapter.rank_list) if r]
    parts = [part for i, _ in alive for part in adapter.factors()[i][::2]]
    try:
        with torch.enable_grad():
            for batch in batches:
                loss = adapter.model(**batch).loss
                found = torch.autograd.grad(loss, parts)
                for (i, r), of_q, of_p in zip(alive, found[::2], found[1::2], strict=True):
                    squares = (
                        of_q[:r].double().square().mean(),
                        of_p[:, :r].double().square().mean(),
                    )
                    sums[i] += float(squares[0] + squares[1]) / 2
                n_batches += 1
    finally:
        adapter.model.train(training)
    if n_batches == 0:
        raise DataError("Sensitivities need at least one batch.")
    return sums / n_batches


def training_batches(
    learner: TransformerLearner, n_batches: int, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Return random training batches of a learner as keyword arguments of its model, with labels.

    Raises:
        DataError: no batch is asked for, or there are fewer texts than they need.
    """
    config, data = learner.config, learner.data.train
    size = n_batches * config.batch_size
    if not 1 <= size <= len(data):
        raise DataError(f"{n_batches} batches need {size} texts, and there are {len(data)}.")
    chosen = np.random.default_rng(seed).choice(len(data), size=size, replace=False)
    labels = None if data.labels is None else tuple(data.labels[i] for i in chosen)
    texts = TextDataset(tuple(data.texts[i] for i in chosen), labels, data.label_names)
    longest = min(config.max_length, learner.tokenizer.model_max_length)
    tokens = tokenise(texts, learner.tokenizer, longest)
    found: list[dict[str, Tensor]] = []
    for indices in np.arange(size).reshape(n_batches, -1):
        batch = tokens.collate(indices).to(learner.accelerator.device)
        classes = batch.labels
        if config.objective == "causal" or classes is None:
            classes = batch.input_ids.masked_fill(~batch.attention_mask.bool(), IGNORED)
        ids, mask = batch.input_ids, batch.attention_mask
        found.append({"input_ids": ids, "attention_mask": mask, "labels": classes})
    return found


def _sensitivities(adapter: ElasticAdapter, loss: Tensor, *, vectors: bool) -> Tensor:
    """Return (N, R) |λ·∂U/∂λ|, with the mean of |p·∂U/∂p| over P and Q added if they count."""
    parts = [part for factors in adapter.factors() for part in factors]
    touched = [
        (part * grad).detach().abs().double().cpu()
        for part, grad in zip(parts, torch.autograd.grad(loss, parts), strict=True)
    ]
    rows: list[Tensor] = []
    for Q, lam, P in zip(touched[::3], touched[1::3], touched[2::3], strict=True):
        rows.append(lam.view(-1) + (Q.mean(1) + P.mean(0) if vectors else 0.0))
    return torch.stack(rows)
