"""The live model: a frozen transformer whose adapters train under a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.rate import coded_bits
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ConfigError, DataError, ModelError, RankcastError
from rankcast.learner.answer_memory import AnswerMemory
from rankcast.learner.base_models import load_model
from rankcast.learner.batching import Batch, BucketedBatches
from rankcast.learner.judge import Judge
from rankcast.learner.memory import shortage_told
from rankcast.learner.objectives import (
    AdapterSnapshot,
    CausalLM,
    Objective,
    SequenceClassification,
)
from rankcast.learner.optimisation import Optimisation, make_accelerator
from rankcast.learner.passes import ModelPasses
from rankcast.learner.precision import precision_for
from rankcast.learner.protocol import Evaluation, StepResult
from rankcast.learner.rounding import Rounding
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.tokenised_splits import TokenisedSplits
from rankcast.records import AdapterLayout, FloatArray, IntArray, TextStats


class TransformerLearner:
    """A `Learner` that fine-tunes a transformer; B = 1.

    The same code runs on a CPU, a GPU, and several under torchrun, where every process has to make
    the same calls in the same order. Randomness is derived from the seed and the step, so that
    the global generators are left alone and a run continues bit-exactly.

    Args:
        config: the model and how it is trained.
        data: what it learns from.

    Raises:
        ModelError: the base model cannot be loaded or adapted.
        DataError: a classifier without labels, or fewer texts than processes.
        ConfigError: a batch that the processes cannot share evenly, or an unavailable precision.
    """

    def __init__(self, config: FinetuneConfig, data: DatasetSplits) -> None:
        self.config = config
        self.data = data
        self.accelerator = make_accelerator()
        self._objective = _objective(config, data)
        device = self.accelerator.device
        self._precision = precision_for(config, device, is_causal=self.is_causal)
        with shortage_told(f"to load {config.model}", "Name a smaller base model."):
            base = load_model(
                config.model,
                self._objective,
                config.seed,
                train_pooler=config.train_pooler,
                base_dropout=config.base_dropout,
                train_texts=data.train.texts,
            )
        self.tokenizer = base.tokenizer
        self.adapter = ElasticAdapter.attach(
            base.model,
            r_max=config.r_max,
            kinds=config.kinds,
            alpha=config.alpha,
            dropout=config.dropout,
            modules_to_save=base.head,
            task_type=self._objective.task_type,
            seed=config.seed,
        )
        self.adapter.model.to(device)
        self._passes = ModelPasses(
            self.adapter, self._objective, self._precision, is_causal=self.is_causal
        )
        self.optimisation = self._fresh_optimisation(config)
        self._splits = TokenisedSplits(config, data, base.tokenizer, base.max_length, device)
        self._judge = Judge(
            self.adapter,
            self._passes,
            self._objective,
            self._splits,
            self.accelerator,
            seed=config.seed,
        )
        self._batches = BucketedBatches(
            self._splits["train"].lengths,
            config.batch_size,
            config.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self._rounding: Rounding | None = None
        self._teachers: Sequence[AdapterSnapshot] = ()
        self._answer_weight = 1.0
        self._remembered: AnswerMemory | None = None

    @property
    def layout(self) -> AdapterLayout:
        """The projections and their largest rank."""
        return self.adapter.layout

    @property
    def n_envs(self) -> int:
        """B: 1, there is one model."""
        return 1

    @property
    def n_steps(self) -> int:
        """Training steps taken so far."""
        return self.optimisation.n_steps

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts tokens."""
        return self.config.objective == "causal"

    def n_cut(self, split: str) -> int:
        """Return how many texts of a split have an answer that lost its end to `max_length`."""
        return self._splits[split].n_cut

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: nothing to do, because the model keeps what it has learned."""

    def next_text(self) -> TextStats:
        """Return the statistics of the batch that the next `step` will train on."""
        return self._splits["train"].text_stats(self._batches.peek())

    def apply(self, ranks: IntArray) -> None:
        """Activate (1, N) ranks; those of the first process, if there are several.

        Raises:
            ModelError: another shape.
            ConfigError: a rank that is no integer or outside 0..r_max.
        """
        plan = np.asarray(ranks)
        if plan.shape != (1, self.layout.n_projections):
            raise ModelError(
                f"This model takes the ranks of {self.layout.n_projections} projections, shape "
                f"(1, {self.layout.n_projections}), got shape {plan.shape}."
            )
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast  # noqa: PLC0415

            here = torch.as_tensor(plan, device=self.accelerator.device)
            shared = broadcast(here)
            assert isinstance(shared, torch.Tensor)
            plan = shared.cpu().numpy()
        self.adapter.set_ranks(plan[0])

    def step(self) -> StepResult:
        """Train one batch under the active ranks; losses are from before the update.

        Raises:
            RankcastError: the loss or its gradients are not finite.
        """
        parts = self._next_parts()
        plan = self.adapter.ranks
        trained = self._training_ranks(plan)
        reference = task = None
        if self.config.measure_reference:
            reference = self._mean_loss(parts, np.full_like(plan, self.layout.r_max))
        if trained is not plan or (self._has_dropout and reference is not None):
            task = self._mean_loss(parts, plan)
        loss = self._train(parts, trained)
        return StepResult(
            task_loss=np.array([loss if task is None else task]),
            reference_loss=None if reference is None else np.array([reference]),
        )

    def train_step(self) -> float:
        """Train one batch without measuring the plan: the cheapest step; return its loss.

        With `nested_prob` the loss is that of the random ranks that were trained.

        Raises:
            RankcastError: the loss or its gradients are not finite.
        """
        return self._train(self._next_parts(), self._training_ranks(self.adapter.ranks))

    def restart(self, config: FinetuneConfig) -> None:
        """Begin a new schedule with new moments; adapter and place in the data stay."""
        self.config = config
        self.optimisation = self._fresh_optimisation(config)

    def _fresh_optimisation(self, config: FinetuneConfig) -> Optimisation:
        scaler = self._precision.loss_scaler()
        return Optimisation(self.adapter, config, self.accelerator, scaler)

    def gradients_at(self, weights: Mapping[str, Tensor]) -> float:
        """Add the gradients of the next batch's loss with other weights, and move on.

        The optimiser takes no part: that is the caller's.

        Args:
            weights: leaf tensors that stand in for parameters of the model, by their names.

        Returns:
            The mean loss, over all processes.

        Raises:
            RankcastError: the loss is not finite.
        """
        self.adapter.model.train()
        with self._passes.with_weights(weights), self._seeded_dropout():
            mean = self._backward(self._next_parts())
        self._batches.advance()
        self.optimisation.n_steps += 1
        return mean

    def loss_parts(self, indices: IntArray) -> Iterator[Tensor]:
        """Yield the mean loss of some training texts in parts that sum to it, with their graphs.

        Args:
            indices: (n,) positions of the texts in the training split.
        """
        parts = self._splits.training_parts(indices)
        total = max(sum(self._objective.count(part) for part in parts), 1)
        for part in parts:
            with self._splits.memory_told():
                yield self._passes.judge(part).loss.sum() / total

    def classifier_tensors(self) -> tuple[str, ...]:
        """Return the names of the output layer's tensors, one row a class; none for others.

        A softmax does not change when one row is taken from all of them.
        """
        if not isinstance(self._objective, SequenceClassification):
            return ()
        n_labels = self._objective.n_labels
        layers = [
            f"{name}.{inner}" if inner else name
            for name, module in self.adapter.extra_modules().items()
            for inner, part in module.named_modules()
            if isinstance(part, torch.nn.Linear) and part.out_features == n_labels
        ]
        known = self.adapter.extra_tensors()
        names = (f"{layer}.{part}" for layer in layers[-1:] for part in ("weight", "bias"))
        return tuple(name for name in names if name in known)

    def begin_qat(self, rounding: Rounding, *, distil: bool) -> None:
        """Train on rounded weights from the next step on, so that the adapter codes small.

        Args:
            rounding: how. The adapter has to be balanced (as `arrays.load_tensors` leaves it).
            distil: train towards the answers that the adapter gives now instead of the labels.
                Losses that training steps return are then divergences.
        """
        self.round_weights(rounding)
        if distil:
            self.learn_from([AdapterSnapshot(self.adapter)])

    def round_weights(self, rounding: Rounding | None) -> None:
        """Round weights in training from the next step on; None: no longer.

        The adapter has to be balanced (as `arrays.load_tensors` leaves it).
        """
        self._rounding = rounding

    def next_loss(self) -> float:
        """Return the loss of the next batch, under the active ranks and rounding, untrained."""
        with self.adapter.at_steps(self._rounding_steps()):
            return self._mean_loss(self._next_parts(), self.adapter.ranks)

    def losses_at(self, plans: Sequence[IntArray]) -> list[float]:
        """Return the next batch's loss under each of some (N,) ranks, and move on untrained."""
        parts = self._next_parts()
        with self.adapter.at_steps(self._rounding_steps()):
            losses = [self._mean_loss(parts, ranks) for ranks in plans]
        self._batches.advance()
        return losses

    def learn_from(self, teachers: Sequence[AdapterSnapshot], weight: float = 1.0) -> None:
        """Train towards what adapters answer on average, from the next step on.

        Args:
            teachers: snapshots of this learner's adapter.
            weight: of the divergence from their answers; the rest is that of the loss.
        """
        self._teachers, self._answer_weight = teachers, weight
        self._remembered = None
        if teachers and not self.is_causal:  # whose answers would be a vocabulary for each token
            self._remembered = AnswerMemory(len(self._splits["train"]))

    def evaluate(
        self, split: str, ranks: IntArray | None = None, max_examples: int | None = None
    ) -> Evaluation:
        """Judge a split under (N,) ranks; None stands for the active ones.

        Args:
            split: `train`, `validation` or `test`.
            ranks: (N,) ranks to judge.
            max_examples: judge so many texts, always the same ones; None for all.

        Raises:
            DataError: no such split, or one without labels for a classifier.
        """
        return self.evaluation_of(*self.judge_texts(split, ranks, max_examples))

    def evaluation_of(self, loss: FloatArray, correct: FloatArray, count: FloatArray) -> Evaluation:
        """Return what texts come to together; see `judge_texts`."""
        return self._judge.together(loss, correct, count)

    def judge_texts(
        self,
        split: str,
        ranks: IntArray | None,
        max_examples: int | None = None,
        indices: IntArray | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) summed loss, right answers and predictions of each text of a split.

        See `Judge.texts`.
        """
        return self._judge.texts(split, ranks, max_examples, indices)

    def divergence_from(
        self,
        reference: AdapterSnapshot,
        split: str,
        indices: IntArray | None = None,
        memory: AnswerMemory | None = None,
    ) -> float:
        """Return KL(reference ‖ adapter as it is) of the tokens of a split [nats per token].

        See `Judge.divergence_from`.
        """
        return self._judge.divergence_from(reference, split, indices, memory)

    def state_dict(self) -> dict[str, Any]:
        """Return adapters, head, moments, schedule, place in the data and active ranks."""
        return {
            "adapter": self.adapter.state_dict(),
            "optimisation": self.optimisation.state_dict(),
            "batches": self._batches.state_dict(),
            "ranks": self.adapter.ranks.tolist(),
            "answers": None if self._remembered is None else self._remembered.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is incomplete, or of another model or data set.
        """
        missing = {"adapter", "optimisation", "batches", "ranks"} - state.keys()
        if missing:
            raise CheckpointError(f"The learner's state lacks {', '.join(sorted(missing))}.")
        self._batches.load_state_dict(state["batches"])
        self.adapter.load_state_dict(state["adapter"])
        self.optimisation.load_state_dict(state["optimisation"])
        self.adapter.set_ranks(np.array(state["ranks"], dtype=np.int64))
        answers = state.get("answers")  # earlier checkpoints have none
        if self._remembered is not None and answers is not None:
            self._remembered.load_state_dict(answers, self.accelerator.device)

    @property
    def _has_dropout(self) -> bool:
        return self.config.dropout > 0 or self.config.base_dropout

    def _next_parts(self) -> list[Batch]:
        """Collate this process's share of the next batch, in parts of gradient accumulation."""
        batch = self._batches.peek()
        share = self._batches.share(batch)
        pieces = np.array_split(share, min(self.config.grad_accumulation, len(share)))
        return [part for piece in pieces for part in self._splits.training_parts(piece, batch)]

    def _training_ranks(self, plan: IntArray) -> IntArray:
        """Return the plan, or with probability `nested_prob` random ranks."""
        rng = np.random.default_rng([self.config.seed, self.n_steps])
        if rng.random() >= self.config.nested_prob:
            return plan
        r_max = self.layout.r_max
        if self.config.nested_levels == "even":
            return rng.integers(0, r_max + 1, size=plan.shape)
        return rng.binomial(r_max, rng.random(), size=plan.shape)

    def _rounding_steps(self) -> list[float] | None:
        """Return the step to which each projection is rounded for the next batch, if it is."""
        if self._rounding is None:
            return None
        rng = np.random.default_rng([self.config.seed, self.n_steps, 2])
        return self._rounding.draw(rng, self.layout.n_projections)

    def _train(self, parts: list[Batch], ranks: IntArray) -> float:
        """Train the next batch under (N,) ranks and move on; return its loss."""
        steps = self._rounding_steps()
        self.adapter.model.train()
        with self.adapter.at_ranks(ranks), self.adapter.at_steps(steps), self._seeded_dropout():
            mean = self._backward(parts)
            self._backward_regularisers(steps)
            self.optimisation.step()
        self._batches.advance()
        return mean

    def _backward(self, parts: list[Batch]) -> float:
        """Add the gradients of a batch; return its mean loss over all processes.

        Raises:
            RankcastError: the loss is not finite.
        """
        total = max(self._n_predictions(parts), 1)  # where all of a batch's answers were cut off
        summed = torch.zeros((), device=self.accelerator.device)
        with self._splits.memory_told():
            for part in parts:
                loss = self._losses(part).sum() / total
                self.optimisation.backward(loss)
                summed += loss.detach()
        mean = self._sum_over_processes(summed)
        if not np.isfinite(mean):
            raise RankcastError(
                f"The loss is {mean} at step {self.n_steps}: the training has diverged. Lower the "
                f"learning rate (now {self.config.lr}) or use bf16 or no mixed precision."
            )
        return mean

    def _backward_regularisers(self, steps: list[float] | None) -> None:
        """Add the gradients of Eq. 3 and of the bits that the adapter takes once it is coded."""
        n_processes = self.accelerator.num_processes
        if self.config.orthogonality_weight > 0:
            weight = self.config.orthogonality_weight / n_processes
            self.optimisation.backward(weight * self.adapter.orthogonality())
        if self._rounding is not None and steps is not None and self._rounding.rate_weight > 0:
            weight = self._rounding.rate_weight / n_processes
            self.optimisation.backward(weight * coded_bits(self.adapter, steps))

    def _losses(self, batch: Batch) -> Tensor:
        """Return (B,) what is minimised: losses, or divergences from earlier answers."""
        if not self._teachers:
            return self._passes.judge(batch).loss
        learnt = self._teachers, self._answer_weight, batch
        return self._passes.towards(*learnt, self._remembered)

    @torch.no_grad()
    def _mean_loss(self, parts: Sequence[Batch], ranks: IntArray) -> float:
        """Return the mean loss of a batch under (N,) ranks, without dropout."""
        self.adapter.model.eval()
        with self.adapter.at_ranks(ranks), self._splits.memory_told():
            summed = torch.stack([self._passes.judge(part).loss.sum() for part in parts]).sum()
        return self._sum_over_processes(summed) / max(self._n_predictions(parts), 1)

    def _n_predictions(self, parts: Sequence[Batch]) -> float:
        """Return how many predictions a batch asks for, over all processes."""
        return self._sum_over_processes(sum(self._objective.count(part) for part in parts))

    def _sum_over_processes(self, value: Tensor | int) -> float:
        tensor = torch.as_tensor(value, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, reduction="sum"))

    @contextmanager
    def _seeded_dropout(self) -> Iterator[None]:
        """Let dropout draw from the seed, the step and the process, and nothing else."""
        if not self._has_dropout:
            yield
            return
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            key = [self.config.seed, self.n_steps, self.accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
            yield


def _objective(config: FinetuneConfig, data: DatasetSplits) -> Objective:
    """Return the objective for the data.

    Raises:
        ConfigError: a classifier of prompts with answers.
        DataError: a classifier without labels.
    """
    if config.objective == "causal":
        return CausalLM()
    if data.train.answered is not None:
        raise ConfigError(
            "Prompts with answers are for language models: set the objective to causal "
            "(--finetune.objective causal), or name a text column and a label column."
        )
    if data.train.labels is None:
        raise DataError(
            "The training texts have no labels: name the label column, or set the objective to "
            "causal."
        )
    return SequenceClassification(data.train.n_labels)
