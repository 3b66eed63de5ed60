"""Losses of a language model that never hold the logits of a whole batch.

A vocabulary of 262,144 words makes a gigabyte of logits of a thousand tokens, and training holds
several times that. Only the tokens of answers need any, and their losses only a few at a time:
hidden states are gathered where an answer's token follows, and the model's head is applied to
slices of them. A slice's gradient is computed with its loss, so that nothing of it is kept. Slices
are wide, for the product with the weights; losses are computed of a few of their rows at a time,
which stay in the processor's cache.

The head is the model's own forward pass, with the hidden states put in where its output layer
begins. Whatever comes after that layer (Gemma 2's soft capping, Cohere's scaling) therefore counts.
A model on which this gives other logits than its usual forward pass is run in full.

Fused kernels (Liger, Cut Cross-Entropy) do likewise on a GPU, and only for known heads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from rankcast.learner.batching import IGNORED, Batch
from rankcast.learner.objectives import Judged, Objective, divergence_of, mean_logits
from rankcast.records import TextStats

SLICE_BYTES, ROW_BYTES = 2**26, 2**22
"""Of the logits of a slice, in the type of the head's weights; of rows whose losses are computed
at once."""
_TRIAL_TOKENS, _TRIAL_TOLERANCE = 6, 1e-3
_LOG = logging.getLogger(__name__)

Run = Callable[[], Any]
"""Runs the model on a batch and returns its output."""
OfSlice = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Values and truths of a slice of something."""
OfRows = Callable[[Tensor, Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]
"""Values and truths of (t, V) logits, of those of teachers, and the (t,) numbers of their rows."""


class Answering(Protocol):
    """A way from a forward pass to losses.

    Shapes: B texts; the states are whatever is kept of a pass.
    """

    def states(self, run: Run, batch: Batch) -> Tensor:
        """Run the model, and return what losses are computed from."""
        ...

    def judge(self, states: Tensor, batch: Batch) -> Judged:
        """Return loss and right answers of each text."""
        ...

    def towards(
        self, states: Tensor, teachers: Sequence[Tensor], weight: float, batch: Batch
    ) -> Tensor:
        """Return (B,) divergences from the mean answers of others.

        Args:
            states: of the model that learns.
            teachers: states of passes with other adapters.
            weight: of the divergence; the rest is that of the loss.
            batch: that all of them have seen.
        """
        ...


class WholeLogits:
    """Losses from all logits at once: for classifiers, and models that nothing else suits.

    Args:
        objective: what the logits are for.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def states(self, run: Run, batch: Batch) -> Tensor:
        """Return the logits."""
        del batch
        return run().logits

    def judge(self, states: Tensor, batch: Batch) -> Judged:
        """Return loss and right answers of each text."""
        return self._objective.judge(states, batch)

    def towards(
        self, states: Tensor, teachers: Sequence[Tensor], weight: float, batch: Batch
    ) -> Tensor:
        """Return (B,) divergences; see `Answering`."""
        divergence = self._objective.divergence(states, mean_logits(teachers), batch)
        if weight == 1.0:
            return divergence
        return weight * divergence + (1 - weight) * self._objective.judge(states, batch).loss


class AnswerHead:
    """Losses from hidden states at the tokens before those of answers, in slices.

    Args:
        model: a language model, perhaps with adapters; its output layer must not train.
        autocast: gives the context in which the model runs.
    """

    def __init__(self, model: Any, autocast: Callable[[], Any]) -> None:
        self._model, self._autocast = model, autocast
        self._layer: Any = model.get_output_embeddings()
        self._vocabulary = int(self._layer.weight.shape[0])

    def states(self, run: Run, batch: Batch) -> Tensor:
        """Return (T, H) hidden states before each of the T tokens of answers."""
        hidden: list[Tensor] = []

        def keep(given: Tensor) -> Tensor:
            hidden.append(given)
            return given.new_zeros(1, 1, self._vocabulary)

        with _instead_of(self._layer, keep):
            run()
        (whole,) = hidden
        return whole[:, :-1][batch.wanted[:, 1:] != IGNORED]

    def judge(self, states: Tensor, batch: Batch) -> Judged:
        """Return loss and right answers of each text."""
        wanted = batch.wanted[:, 1:]
        target = wanted[wanted != IGNORED]

        def of_rows(logits: Tensor, _: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
            loss = F.cross_entropy(logits, target[rows], reduction="none")
            return loss, logits.detach().argmax(-1) == target[rows]

        loss, right = self._in_slices(states, of_rows)
        return Judged(
            _by_text(loss, wanted), _by_text(right.long(), wanted), (wanted != IGNORED).sum(-1)
        )

    def towards(
        self, states: Tensor, teachers: Sequence[Tensor], weight: float, batch: Batch
    ) -> Tensor:
        """Return (B,) divergences; see `Answering`."""
        wanted = batch.wanted[:, 1:]
        target = wanted[wanted != IGNORED]

        def of_rows(
            logits: Tensor, others: Sequence[Tensor], rows: Tensor
        ) -> tuple[Tensor, Tensor]:
            divergence = divergence_of(logits, mean_logits(others))
            right = logits.detach().argmax(-1) == target[rows]
            if weight == 1.0:
                return divergence, right
            loss = F.cross_entropy(logits, target[rows], reduction="none")
            return weight * divergence + (1 - weight) * loss, right

        return _by_text(self._in_slices(states, of_rows, teachers)[0], wanted)

    def _in_slices(
        self, states: Tensor, of_rows: OfRows, teachers: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return (T,) values of (T, H) states, whose gradients are known, and (T,) truths."""
        numbers = torch.arange(len(states), device=states.device)
        few = max(1, ROW_BYTES // (4 * self._vocabulary))
        width = self._layer.weight.element_size() * self._vocabulary

        def of_slice(part: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                others = [self._logits(teacher[rows]) for teacher in teachers]

            def of_few(logits: Tensor, inner: slice) -> tuple[Tensor, Tensor]:
                return of_rows(logits, [other[inner] for other in others], numbers[rows][inner])

            return _in_slices(self._logits(part), of_few, few)

        return _in_slices(states, of_slice, max(1, SLICE_BYTES // width))

    def _logits(self, states: Tensor) -> Tensor:
        """Return (t, V) logits in float32 that the model's own code makes of (t, H) states."""
        usual, on_cpu = self._layer.forward, states.device.type == "cpu"
        given = states[None].float() if on_cpu else states[None]
        # On a CPU, turning all weights to bfloat16 for a slice takes longer than it saves.
        precision = torch.autocast("cpu", enabled=False) if on_cpu else self._autocast()
        token = torch.zeros(1, 1, dtype=torch.long, device=states.device)
        with _instead_of(self._layer, lambda _: usual(given)), precision:
            logits = self._model(input_ids=token, attention_mask=torch.ones_like(token)).logits
        return logits.squeeze(0).float()  # an index would fill zeros in the backward pass


def answering_for(
    objective: Objective, model: Any, autocast: Callable[[], Any], *, is_causal: bool
) -> Answering:
    """Return how the losses of a model are computed; logs why, if all logits are needed.

    Args:
        objective: of the model.
        model: the model with its adapters.
        autocast: gives the context in which the model runs.
        is_causal: whether it predicts tokens.
    """
    if not is_causal:
        return WholeLogits(objective)
    why = _obstacle(model)
    if why is None:
        return AnswerHead(model, autocast)
    _LOG.warning("Losses need the logits of whole texts, and much memory: %s.", why)
    return WholeLogits(objective)


@torch.no_grad()
def _obstacle(model: Any) -> str | None:
    """Return why a model's head cannot be applied to slices; None if it can."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, layer = type(base).__name__, base.get_output_embeddings()
    if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
        return f"{name} names no output layer"
    if any(parameter.requires_grad for parameter in layer.parameters()):
        return f"the output layer of {name} trains"
    ids = torch.arange(1, _TRIAL_TOKENS + 1, device=layer.weight.device)[None] % len(layer.weight)
    text, place = TextStats(np.zeros(1), np.zeros(1)), np.zeros(1, dtype=np.int64)
    batch = Batch(ids, torch.ones_like(ids), None, text, place)
    training = model.training
    model.eval()
    try:
        with torch.autocast(ids.device.type, enabled=False):
            head = AnswerHead(model, lambda: torch.autocast(ids.device.type, enabled=False))
            whole = model(input_ids=ids, attention_mask=batch.attention_mask).logits
            run = lambda: model(input_ids=ids, attention_mask=batch.attention_mask)  # noqa: E731
            states = head.states(run, batch).flip(0)  # in another order: none may see another
            sliced = head._logits(states).flip(0)  # noqa: SLF001
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        return f"the forward pass of {name} takes no hidden states ({error})"
    finally:
        model.train(training)
    wanted = whole[0, :-1].float()
    far = (sliced - wanted).abs().max() > _TRIAL_TOLERANCE * wanted.abs().max().clamp_min(1.0)
    return f"{name} makes other logits of single tokens" if bool(far) else None


def _in_slices(states: Tensor, at: OfSlice, n_slice: int) -> tuple[Tensor, Tensor]:
    """Return (T,) values and truths of (T, …) states, so many at a time."""
    found: Any = _Slices.apply(states, at, n_slice)
    return found


class _Slices(torch.autograd.Function):
    """Values of hidden states in slices; the gradient of each is computed at once.

    A value must depend on its own state alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        at: OfSlice,
        n_slice: int,
    ) -> tuple[Tensor, Tensor]:
        """Return (T,) values and (T,) truths."""
        values = torch.zeros(len(states), device=states.device)
        truths = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        gradients = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), n_slice):
            rows = slice(start, start + n_slice)
            if gradients is None:
                values[rows], truths[rows] = at(states[rows], rows)
                continue
            with torch.enable_grad():
                part = states[rows].detach().requires_grad_()
                value, truths[rows] = at(part, rows)
                (gradients[rows],) = torch.autograd.grad(value.sum(), part)
            values[rows] = value.detach()
        ctx.mark_non_differentiable(truths)
        ctx.gradients = gradients
        return values, truths

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """Scale each state's gradient by that of its value."""
        if bool((upstream[0] == 1).all()):
            return ctx.gradients, None, None
        scaled = upstream[0][:, None] * ctx.gradients.float()
        return scaled.to(ctx.gradients.dtype), None, None


def _by_text(values: Tensor, wanted: Tensor) -> Tensor:
    """Return (B,) sums of (T,) values over the answers of each text."""
    rows = (wanted != IGNORED).nonzero()[:, 0]
    return torch.zeros(len(wanted), dtype=values.dtype, device=values.device).index_add(
        0, rows, values
    )


@contextmanager
def _instead_of(layer: nn.Module, call: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Call something else than a layer's forward pass inside a `with` block."""
    before = layer.__dict__.get("forward")
    layer.forward = call
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before
