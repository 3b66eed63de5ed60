"""The live model: a frozen transformer whose adapters train under a plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rankcast.adapters.rate import coded_bits
from rankcast.adapters.svd import ElasticAdapter
from rankcast.errors import CheckpointError, DataError, ModelError, RankcastError
from rankcast.finetune.base_models import load_model
from rankcast.finetune.batching import Batch, BucketedBatches, TokenisedDataset, tokenise
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.distillation import Teacher
from rankcast.finetune.learner import Evaluation, StepResult
from rankcast.finetune.objectives import CausalLM, Objective, SequenceClassification
from rankcast.finetune.optimisation import Optimisation, make_accelerator
from rankcast.finetune.rounding import Rounding
from rankcast.finetune.scoring import Scorer
from rankcast.finetune.texts import DatasetSplits
from rankcast.records import AdapterLayout, FloatArray, IntArray, TextStats


class TransformerLearner:
    """A `Learner` that fine-tunes a transformer; B = 1.

    The same code runs on a CPU, a GPU, and several under torchrun, where every process has to make
    the same calls in the same order. Randomness is derived from the seed and the step, so that
    the global generators are left alone and a run continues bit-exactly.

    Args:
        config: the model and how it is trained.
        data: what it learns from.
        accelerator: an `accelerate.Accelerator`; None makes one.

    Attributes:
        rounding: train on rounded weights, so that coding the adapter costs little; None, as at
            the beginning, rounds nothing. The adapter has to be balanced (`canonical.balance`).
        teacher: train towards these answers instead of the labels; None, as at the beginning,
            trains on the labels. Losses that training steps return are then divergences.

    Raises:
        ModelError: the base model cannot be loaded or adapted.
        DataError: a classifier without labels, or fewer texts than processes.
        ConfigError: a batch that the processes cannot share evenly, or an unavailable precision.
    """

    def __init__(
        self, config: FinetuneConfig, data: DatasetSplits, accelerator: Any = None
    ) -> None:
        self.config = config
        self.data = data
        self.rounding: Rounding | None = None
        self.teacher: Teacher | None = None
        self.accelerator = accelerator or make_accelerator(config.mixed_precision)
        self._objective = _objective(config, data)
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
        self.adapter.model.to(self.accelerator.device)
        self._scorer = Scorer(self.adapter, self._objective, config, self.accelerator)
        self.optimisation = Optimisation(self.adapter, config, self.accelerator)
        self._max_length = min(config.max_length, base.max_length)
        self._splits: dict[str, TokenisedDataset] = {}
        self._batches = BucketedBatches(
            self._tokenised("train").lengths,
            config.batch_size,
            config.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

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

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: nothing to do, because the model keeps what it has learned."""

    def next_text(self) -> TextStats:
        """Return the statistics of the batch that the next `step` will train on."""
        return self._tokenised("train").text_stats(self._batches.peek())

    def apply(self, ranks: IntArray) -> None:
        """Put (1, N) ranks in force; those of the first process, if there are several.

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
        """Train one batch under the ranks in force; losses are from before the update.

        Raises:
            RankcastError: the loss or its gradients are not finite.
        """
        parts = self._parts(self._batches.peek())
        plan = self.adapter.ranks
        trained = self._training_ranks(plan)
        noisy = self.config.dropout > 0 or self.config.base_dropout
        reference = task = None
        if self.config.measure_reference:
            reference = self._scorer.mean_loss(parts, np.full_like(plan, self.layout.r_max))
        if trained is not plan or (noisy and reference is not None):
            task = self._scorer.mean_loss(parts, plan)
        loss = self._train_at(trained, parts, noisy=noisy)
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
        parts = self._parts(self._batches.peek())
        noisy = self.config.dropout > 0 or self.config.base_dropout
        return self._train_at(self._training_ranks(self.adapter.ranks), parts, noisy=noisy)

    def evaluate(
        self, split: str, ranks: IntArray | None = None, max_examples: int | None = None
    ) -> Evaluation:
        """Judge a split under (N,) ranks; None stands for those in force.

        Args:
            split: `train`, `validation` or `test`.
            ranks: (N,) ranks to judge.
            max_examples: judge so many texts, always the same ones; None for all.

        Raises:
            DataError: no such split, or one without labels for a classifier.
        """
        loss, correct, count = self.judge_texts(split, ranks, max_examples)
        total = max(count.sum(), 1)
        return Evaluation(float(loss.sum() / total), float(correct.sum() / total), len(count))

    def predictions(
        self, split: str, ranks: IntArray | None = None, max_examples: int | None = None
    ) -> FloatArray:
        """Return (n,) share of right answers of each text, in order: 0 or 1 for a classifier."""
        _, correct, count = self.judge_texts(split, ranks, max_examples)
        return correct / np.maximum(count, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return adapters, head, moments, schedule, place in the data and ranks in force."""
        return {
            "adapter": self.adapter.state_dict(),
            "optimisation": self.optimisation.state_dict(),
            "batches": self._batches.state_dict(),
            "ranks": self.adapter.ranks.tolist(),
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

    def _tokenised(self, split: str) -> TokenisedDataset:
        """Tokenise a split the first time it is asked for."""
        if split not in self._splits:
            self._splits[split] = tokenise(self.data[split], self.tokenizer, self._max_length)
        return self._splits[split]

    def _parts(self, batch: IntArray) -> list[Batch]:
        """Collate this process's share of a batch, in the parts of gradient accumulation."""
        share = self._batches.share(batch)
        pieces = np.array_split(share, min(self.config.grad_accumulation, len(share)))
        tokens, device = self._tokenised("train"), self.accelerator.device
        return [tokens.collate(piece, batch).to(device) for piece in pieces]

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
        if self.rounding is None:
            return None
        rng = np.random.default_rng([self.config.seed, self.n_steps, 2])
        return self.rounding.draw(rng, self.layout.n_projections)

    def _train_at(self, ranks: IntArray, parts: list[Batch], *, noisy: bool) -> float:
        """Train the next batch under (N,) ranks and move on; return its loss."""
        steps = self._rounding_steps()
        with (
            self.adapter.at_ranks(ranks),
            self.adapter.at_steps(steps),
            self._dropout_generator(noisy),
        ):
            loss = self._train(parts, steps)
        self._batches.advance()
        return loss

    def _train(self, parts: list[Batch], steps: list[float] | None) -> float:
        """Take one optimiser step on the mean loss and the regularisers; return the loss."""
        self.adapter.model.train()
        total = self._scorer.n_predictions(parts)
        summed = torch.zeros((), device=self.accelerator.device)
        for part in parts:
            losses = (
                self._scorer.judge(part).loss
                if self.teacher is None
                else self._scorer.divergence(part, self.teacher)
            )
            loss = losses.sum() / total
            self.optimisation.backward(loss)
            summed += loss.detach()
        mean = self._scorer.total(summed)
        if not np.isfinite(mean):
            raise RankcastError(
                f"The loss is {mean} at step {self.n_steps}: the training has diverged. Lower the "
                f"learning rate (now {self.config.lr}) or use bf16 or no mixed precision."
            )
        if self.config.orthogonality_weight > 0:
            weight = self.config.orthogonality_weight / self.accelerator.num_processes
            self.optimisation.backward(weight * self.adapter.orthogonality())
        if self.rounding is not None and steps is not None and self.rounding.bit_weight > 0:
            weight = self.rounding.bit_weight / self.accelerator.num_processes
            self.optimisation.backward(weight * coded_bits(self.adapter, steps))
        self.optimisation.step()
        return mean

    def judge_texts(
        self,
        split: str,
        ranks: IntArray | None,
        max_examples: int | None = None,
        indices: IntArray | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (n,) summed loss, right answers and predictions of each text of a split.

        Args:
            split: `train`, `validation` or `test`.
            ranks: (N,) ranks to judge; None for those in force.
            max_examples: judge so many texts, always the same ones; None for all.
            indices: (n,) positions of the texts to judge, in the order of the result.

        Raises:
            DataError: no such split, or positions that are none of its texts.
        """
        chosen = self.adapter.ranks if ranks is None else ranks
        return self._scorer.judge_texts(self._tokenised(split), chosen, max_examples, indices)

    @contextmanager
    def _dropout_generator(self, needed: bool) -> Iterator[None]:
        """Let dropout draw from the seed, the step and the process, and nothing else."""
        if not needed:
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
        DataError: a classifier without labels.
    """
    if config.objective == "causal":
        return CausalLM()
    if data.train.labels is None:
        raise DataError(
            "The training texts have no labels: name the label column, or set the objective to "
            "causal."
        )
    return SequenceClassification(data.train.n_labels)
