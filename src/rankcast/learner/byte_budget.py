"""Train an adapter so that its whole file has at most so many bytes.

First as usual, then on weights that are rounded by a growing share of the way, until they are those
of the file. Their steps train, too. Bits have a price, and a controller moves it so that the file
comes down to the bytes that are allowed while there is still time to learn.

A file for several sizes trains for all of them at once: each step is for one, drawn at random, and
trains the components that its prefix has. What each size adds has a price of its own.

Smaller files beside it come last: the same weights train on, at a higher price, from size to size.

Differs from the paper, which sends 32 bits a number: there is no price on ranks here, because a
component that is worth little loses its weights one by one.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.arrays import load_tensors
from rankcast.adapters.export import base_name, task_of
from rankcast.adapters.fingerprint import base_fingerprint
from rankcast.codec.container import Container, pack_as_trained, read_container
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source, coding_of, without_zeros
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError, InfeasibleSizeError, RankcastError
from rankcast.learner.rounded_weights import RoundedWeights
from rankcast.learner.teachers import Teachers
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import AdapterLayout, IntArray

Pack = Callable[[AdapterTensors, Coding], Container]
"""Makes the file of an adapter that was trained to be rounded to some steps."""

BITS_A_NUMBER = 2.0
"""More than these bits for every number of a rank are better spent on a higher rank."""
ROUNDED_AT, SMALL_AT = 0.65, 0.5
"""Shares of the steps on rounded weights after which all are rounded, and the file is small."""
FIRST_SIZE = 1.3
"""Bytes of the weights when rounding begins, as a multiple of the target."""
PRICE_SHARE = 0.2
"""Of what a weight's gradient is beside the bits that it may cost, with which the price begins."""
WARMUP = 20
LR, MOVES = 0.012, 10.0
"""Learning rate of latents, and quantiser steps that a weight can move if there are few steps."""
STEP_LR = 0.003
"""Learning rate of the logarithms of steps."""
LR_LEFT = 0.4
"""Share of the learning rate that is left when the usual training ends."""
LARGEST_RANK = 16
"""Of components that a size adds by itself."""
SMALLER_SHARE = 0.2
"""Of the steps after teachers, that each smaller file has."""
PACK_EVERY = 50
"""Steps after which the file is made, to see what it takes beside its weights."""


def rank_for(n_bytes: int, layout: AdapterLayout) -> int:
    """Return the rank whose numbers so many bytes suit."""
    numbers = sum(p.d_in + p.d_out for p in layout.projections)
    return min(max(1, round(8 * n_bytes / (BITS_A_NUMBER * numbers))), LARGEST_RANK)


def ranks_for(config: CodecConfig, layout: AdapterLayout) -> list[int]:
    """Return how many components of a projection each size has, those of smaller ones included."""
    more = [size - before for before, size in pairwise((0, *config.sizes))]
    return list(accumulate(config.rank or rank_for(n, layout) for n in more))


def teacher_steps(config: CodecConfig, steps: int) -> int:
    """Return how many of the training steps each teacher has."""
    return max(1, int(config.teacher_share * steps / config.teachers)) if config.teachers else 0


def smaller_steps(config: CodecConfig, steps: int) -> int:
    """Return in how many of the training steps each smaller file trains that comes after it."""
    left = steps - config.teachers * teacher_steps(config, steps)
    return max(2, round(SMALLER_SHARE * left)) if config.smaller_bytes else 0


def small_steps(config: CodecConfig, steps: int) -> int:
    """Return in how many of the training steps the file trains, after its teachers.

    Raises:
        ConfigError: there is no size, or too few are left.
    """
    if not config.sizes:
        raise ConfigError("Training for a size needs target_bytes.")
    left = steps - config.teachers * teacher_steps(config, steps)
    left -= len(config.smaller_bytes) * smaller_steps(config, steps)
    if left < 2 * len(config.sizes):
        raise ConfigError(
            f"{steps} steps are too few: teachers and smaller files leave {left}, and each size "
            f"({', '.join(map(str, config.sizes))} bytes) needs two. Hundreds or more serve it."
        )
    return left


@dataclass
class PriceController:
    """The price of a bit that brings a file to its size.

    A proportional and an integral part, both of the excess of the bytes over what is aimed at; the
    price is the exponential of their sum, because its order of magnitude is not known.

    Attributes:
        target_bytes: to come to.
        steps: in which to do it; the aim falls from the first size to the target over `SMALL_AT`
            of them.
        begin: price without any excess [nats]; 0 before gradients are known.
        first: bytes at the beginning; None before it.
        integral: of the excess.
        price: of a bit [nats].
    """

    target_bytes: int
    steps: int
    begin: float = 0.0
    first: float | None = None
    integral: float = 0.0
    price: float = 0.0

    _PROPORTIONAL, _INTEGRAL, _MOST = 8.0, 46.0, 0.5

    def update(self, n_bytes: float, step: int) -> float:
        """Return the price for a step, from the bytes that the file would have now."""
        if self.first is None:
            self.first = n_bytes
        done = min(1.0, step / (SMALL_AT * self.steps))
        aim = max(self.first + (self.target_bytes - self.first) * done, 1.0)  # nothing may be there
        excess = min(max((n_bytes - aim) / aim, -self._MOST), self._MOST)
        self.integral += min(self._INTEGRAL / self.steps, 0.1) * excess
        exponent = self.integral + self._PROPORTIONAL * excess
        self.price = self.begin * math.exp(min(max(exponent, -20.0), 12.0))
        return self.price


class _Rounding:
    """What trains once weights are rounded: latents and steps, their optimiser, the price of bits.

    Attributes:
        weights: of the adapter.
        controllers: of the price of each chunk.
        optimizer: of latents and steps.
        bytes_beside: (K,) what a file takes for each chunk beside the bits of its weights.
    """

    def __init__(
        self,
        learner: TransformerLearner,
        config: CodecConfig,
        ranks: Sequence[IntArray],
        n_steps: int,
    ) -> None:
        contrasts, step = learner.classifier_tensors(), config.relative_step
        sizes = [size - before for before, size in pairwise((0, *config.sizes))]
        self.weights = RoundedWeights(learner.adapter, step or 1.0, contrasts, ranks)
        if step is None:
            self.weights.coarsen_to([8 * FIRST_SIZE * size for size in sizes])
        self.controllers = [PriceController(size, n_steps) for size in sizes]
        self.bytes_beside = [0.0] * len(sizes)
        self.optimizer = self._optimizer(config, n_steps)

    def go_on_to(self, size: int, config: CodecConfig, n_steps: int) -> None:
        """Begin to train the same weights down to a smaller size, from the price of now."""
        self.controllers = [PriceController(size, n_steps, begin=self.controllers[-1].price)]
        self.optimizer = self._optimizer(config, n_steps)

    def _optimizer(self, config: CodecConfig, n_steps: int) -> torch.optim.AdamW:
        rates = config.lr or max(LR, MOVES / n_steps), STEP_LR
        groups = [
            {"params": [parameter], "lr": lr, "peak": lr}
            for parameter, lr in zip(self.weights.parameters, rates, strict=True)
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    def measure(self, pack: Pack) -> None:
        """Make the file as it would be now, to see what it takes beside its weights."""
        weights = self.weights
        tensors, coding = without_zeros(weights.decoded(weights.indices()), weights.coding())
        ends = prefix_bytes(pack(tensors, coding), coding)
        bits = weights.chunk_bits(weights.bits())
        self.bytes_beside = [
            end - begin - n / 8 for (begin, end), n in zip(pairwise((0, *ends)), bits, strict=True)
        ]

    def move(self, share: float) -> None:
        """Step with the gradients that are there, at a share of the learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {
            "weights": self.weights.state_dict(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "controllers": [asdict(controller) for controller in self.controllers],
            "bytes_beside": list(self.bytes_beside),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.weights.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.controllers = [PriceController(**kept) for kept in state["controllers"]]
        self.bytes_beside = list(state["bytes_beside"])


class ByteBudgetTraining:
    """Trains a learner's adapter for a file of a given size, and for prefixes of given sizes.

    Attributes:
        n_steps: steps taken.
        n_bytes: of the file as it would be now; None while training as usual.
        larger: files that are made when smaller ones train, their steps, and the price of a bit.

    Args:
        learner: with room for the ranks of all sizes.
        config: the sizes, and how to train for them.
        steps: of the training in all.
        pack: makes the file.
        most: (N,) components that a projection may have; those that the learner has room for if
            None.

    Raises:
        ConfigError: no size, or fp16, whose scaled gradients the price does not know.
    """

    def __init__(
        self,
        learner: TransformerLearner,
        config: CodecConfig,
        steps: int,
        pack: Pack,
        most: IntArray | None = None,
    ) -> None:
        if learner.optimisation.scaler is not None:
            raise ConfigError("Training for a size runs in bf16 or without mixed precision.")
        self.learner, self.config, self.steps = learner, config, steps
        self.n_steps = 0
        self.n_bytes: float | None = None
        self.larger: list[tuple[Container, Coding, float]] = []
        self._pack, self._usual = pack, learner.config
        each = teacher_steps(config, steps)
        self._first = config.teachers * each
        small = small_steps(config, steps)
        self._n_rounded, self._made = rounded_steps(config, small), self._first + small
        r_max = learner.layout.r_max
        room = np.full(learner.layout.n_projections, r_max) if most is None else most
        self._ranks = [np.minimum(room, rank) for rank in ranks_for(config, learner.layout)]
        self._rounding: _Rounding | None = None
        self._teachers = Teachers(learner, config.teachers, each) if config.teachers else None
        if self._teachers is None:
            learner.adapter.set_ranks(self._ranks[-1])

    @property
    def rounding_is_next(self) -> bool:
        """Whether the next step is the first on rounded weights."""
        return self.n_steps == self._made - self._n_rounded

    @property
    def price(self) -> float:
        """What a bit of the last chunk costs now [nats]: at the end, what one more would gain."""
        return 0.0 if self._rounding is None else self._rounding.controllers[-1].price

    def step(self) -> float:
        """Train one batch and return its loss, price of bits excluded.

        Raises:
            InfeasibleSizeError: a size that not even weights of zero reach.
            RankcastError: the loss or its gradients are not finite.
        """
        if self._teachers is not None and self.n_steps < self._first:
            self.n_steps += 1
            loss = self._teachers.step()
            if self._teachers.done:
                self._begin_after(self._teachers)
            return loss
        place = self.n_steps - (self._made - self._n_rounded)
        if self.n_steps >= self._made:
            loss = self._smaller_step(self.n_steps - self._made)
        elif place >= 0:
            loss = self._rounded_step(
                place, self._n_rounded, place / (ROUNDED_AT * self._n_rounded)
            )
        else:
            with self.learner.adapter.at_ranks(self._ranks[self._prefix()]):
                loss = self.learner.train_step()
        self.n_steps += 1
        return loss

    def finish(self) -> tuple[Container, Coding]:
        """Return the file and its steps; the learner has the adapter that a decoder makes of it.

        What is too much for the size is taken away: weights whose latents are nearest to zero.

        Raises:
            InfeasibleSizeError: a file of zeros is too large.
        """
        tensors, coding, file = self._fitted()
        load_tensors(self.learner.adapter, tensors)
        self.n_bytes = file.n_bits // 8
        return file, coding

    def _fitted(self) -> tuple[AdapterTensors, Coding, Container]:
        """Return what a file of the size holds, and the file; see `finish`."""
        counts = [0] * len(self._ranks)
        while True:  # one prefix's weights change another's bytes a little, through the header
            before = list(counts)
            for chunk, size in enumerate(self._sizes()):
                counts[chunk] = self._taken_away(counts, chunk, size)
            if counts == before:
                return self._file(counts)

    def _taken_away(self, counts: Sequence[int], chunk: int, size: int) -> int:
        """Return how many weights of a chunk have to go for its prefix to have a size.

        Raises:
            InfeasibleSizeError: all of them are too few.
        """

        def n_bytes(count: int) -> int:
            _, coding, file = self._file([*counts[:chunk], count, *counts[chunk + 1 :]])
            return prefix_bytes(file, coding)[chunk]

        n_alive = self._begun().weights.n_alive(chunk)
        fits = lambda count: n_bytes(count) <= size  # noqa: E731
        count = bisect_left(range(n_alive), True, lo=counts[chunk], key=fits)
        if not fits(count):
            raise InfeasibleSizeError(n_bytes(count), size, trainable=False)
        return count

    def _file(self, counts: Sequence[int]) -> tuple[AdapterTensors, Coding, Container]:
        """Return what a file holds without the smallest weights of each chunk, and the file."""
        weights = self._begun().weights
        decoded = weights.decoded(weights.without_smallest(counts))
        tensors, coding = without_zeros(decoded, weights.coding())
        return tensors, coding, self._pack(tensors, coding)

    def _sizes(self) -> tuple[int, ...]:
        """Return the sizes of the file that is trained now, ascending."""
        n_made = len(self.larger)
        return (self.config.smaller_bytes[n_made - 1],) if n_made else self.config.sizes

    def _smaller_step(self, step: int) -> float:
        """Train a batch for a smaller file; keep the larger one when it begins."""
        n_steps = smaller_steps(self.config, self.steps)
        number, place = divmod(step, n_steps)
        if place == 0 and len(self.larger) == number:
            _, coding, file = self._fitted()
            self.larger.append((file, coding, self.price))
            (size,) = self._sizes()
            self._begun().go_on_to(size, self.config, n_steps)
        return self._rounded_step(place, n_steps, 1.0)

    def _prefix(self) -> int:
        """Return the prefix that the next step is for, at random."""
        rng = np.random.default_rng([self.learner.config.seed, self.n_steps, 4])
        return int(rng.integers(len(self._ranks)))

    def _begin_after(self, teachers: Teachers) -> None:
        """Begin with the small adapter, which learns what others answer that have been trained."""
        teachers.teach(self.config.answer_weight)
        self.learner.restart(self._usual)
        self.learner.adapter.set_ranks(self._ranks[-1])

    def _begun(self) -> _Rounding:
        """Return what trains on rounded weights; turn to it if that has not been done.

        Raises:
            InfeasibleSizeError: a file of zeros is larger than the smallest size.
        """
        if self._rounding is None:
            self._rounding = _Rounding(self.learner, self.config, self._ranks, self._n_rounded)
            least = min((*self.config.sizes, *self.config.smaller_bytes))
            n_alive = map(self._rounding.weights.n_alive, range(len(self._ranks)))
            _, _, empty = self._file(list(n_alive))
            if empty.n_bits > 8 * least:
                raise InfeasibleSizeError(empty.n_bits // 8, least, trainable=False)
        return self._rounding

    def _rounded_step(self, step: int, n_steps: int, share: float) -> float:
        """Train a batch on weights that are rounded by a share of the way."""
        now = self._begun()
        weights, bits = now.weights, now.weights.bits()
        prefix = self._prefix() if step else len(self._ranks) - 1  # at first all find their price
        if step % PACK_EVERY == 0:
            now.measure(self._pack)
        sizes = [
            n / 8 + beside
            for n, beside in zip(weights.chunk_bits(bits), now.bytes_beside, strict=True)
        ]
        self.n_bytes = sum(sizes)
        prices = [
            controller.update(n_bytes, step)
            for controller, n_bytes in zip(now.controllers, sizes, strict=True)
        ]
        row = weights.weights(min(1.0, share))
        leaf = row.detach().requires_grad_()
        with self.learner.adapter.at_ranks(self._ranks[prefix]):
            loss = self.learner.gradients_at(weights.by_parameter(leaf, prefix))
        self.learner.optimisation.sum_over_processes([leaf])
        paid = weights.price(bits, prices[: prefix + 1])
        torch.autograd.backward([row, paid], [leaf.grad, None])
        if step == 0 and not self.larger:
            for controller, per_bit in zip(
                now.controllers, weights.gradients_per_bit(bits), strict=True
            ):
                controller.begin = PRICE_SHARE * per_bit
        self._clip(weights.parameters)
        now.move(min(1.0, (step + 1) / WARMUP) * (1 - step / n_steps))
        return loss

    def _clip(self, parameters: Sequence[Tensor]) -> None:
        """Scale gradients down to the largest norm that is allowed.

        Raises:
            RankcastError: they are not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.learner.config.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise RankcastError(
                f"The gradients are not finite at step {self.n_steps}. Lower the learning rates "
                f"(finetune.lr, codec.lr), or use bf16 or no mixed precision."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        return {
            "n_steps": self.n_steps,
            "teachers": None if self._teachers is None else self._teachers.state_dict(),
            "learner": self.learner.state_dict(),
            "rounding": None if self._rounding is None else self._rounding.state_dict(),
            "larger": [
                (np.frombuffer(bytearray(file.to_bytes()), np.uint8), asdict(coding), price)
                for file, coding, price in self.larger
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another model or data set.
        """
        if self._teachers is not None:
            self._teachers.load_state_dict(state["teachers"])
            if self._teachers.done:
                self._begin_after(self._teachers)
        self.n_steps = int(state["n_steps"])
        self.learner.load_state_dict(state["learner"])
        if state["rounding"] is not None:
            self._begun().load_state_dict(state["rounding"])
        self.larger = [
            (read_container(bytes(np.asarray(file))), coding_of(**coding), price)
            for file, coding, price in state["larger"]
        ]


def prefix_bytes(file: Container, coding: Coding) -> list[int]:
    """Return the bytes of each prefix for which a file was trained.

    Args:
        file: packed as trained, which leaves out chunks that bring nothing.
        coding: its steps and prefixes.
    """
    ends = [prefix.n_bytes for prefix in file.ladder]
    places = accumulate(int(a != b) for a, b in pairwise(coding.prefix_ranks))
    return [ends[place] for place in (0, *places)]


def usual_training(config: FinetuneConfig, codec: CodecConfig, steps: int) -> FinetuneConfig:
    """Return how the steps train that come before rounding.

    The learning rate falls, but not to zero, because training goes on.
    """
    usual = steps - rounded_steps(codec, steps)
    return replace(
        config,
        total_steps=max(1, round(usual / (1 - LR_LEFT))),
        warmup_steps=min(config.warmup_steps, usual),
        nested_prob=0.0,
        orthogonality_weight=0.0,
        measure_reference=False,
    )


def packer(learner: TransformerLearner, base: BaseModel | None = None) -> Pack:
    """Return what makes the file of a learner's adapter.

    Args:
        learner: with the model.
        base: what the header says of it; its name and fingerprint if None.
    """
    if base is None:
        base = BaseModel(base_name(learner.adapter), base_fingerprint(learner.adapter.model))
    task = {"task_type": task_type} if (task_type := task_of(learner.adapter)) else {}

    def pack(tensors: AdapterTensors, coding: Coding) -> Container:
        return pack_as_trained(Source(tensors, base, task), coding)

    return pack


def rounded_steps(config: CodecConfig, steps: int) -> int:
    """Return in how many of the steps weights are rounded; in the first they never are."""
    return max(1, min(steps - 1, round(config.rounded_share * steps)))
