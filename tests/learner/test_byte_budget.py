"""Training for a file of a given size: bits by hand, the price of bits, and files that fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import keyword_splits, randomise
from rankcast.adapters.arrays import load_tensors, tensors_of
from rankcast.adapters.export import save_adapter
from rankcast.codec.container import Container, pack_as_trained, read_container
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source
from rankcast.codec.quantiser import step_of
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.codec import CodecConfig
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError, InfeasibleSizeError
from rankcast.learner.byte_budget import (
    ByteBudgetTraining,
    PriceController,
    rank_for,
    ranks_for,
    rounded_steps,
    small_steps,
    smaller_steps,
)
from rankcast.learner.objectives import AdapterSnapshot, mean_logits
from rankcast.learner.rounded_weights import LOG_GRID, STRIP_BITS, RoundedWeights, StripBits
from rankcast.learner.transformer import TransformerLearner
from rankcast.packaging.pack import pack as pack_folder
from rankcast.training.folder import load_state, save_state

CONFIG = FinetuneConfig(
    model="tiny", lr=1e-2, r_max=2, alpha=4.0, batch_size=8, warmup_steps=2, total_steps=30,
    orthogonality_weight=0.0, mixed_precision="no", measure_reference=False,
)  # fmt: skip


def learner_of(**settings: Any) -> TransformerLearner:
    return TransformerLearner(replace(CONFIG, **settings), keyword_splits())


def pack(tensors: AdapterTensors, coding: Coding) -> Container:
    source = Source(tensors, BaseModel("tiny", "0" * 64), {"task_type": "SEQ_CLS"})
    return pack_as_trained(source, coding)


def training_of(target_bytes: int, steps: int = 12, **settings: Any) -> ByteBudgetTraining:
    config = CodecConfig(target_bytes=target_bytes, teachers=0, **settings)
    return ByteBudgetTraining(learner_of(), config, steps, pack)


def run(training: ByteBudgetTraining) -> list[float]:
    return [training.step() for _ in range(training.steps - training.n_steps)]


def strip_bits(*strips: list[int]) -> StripBits:
    widths = torch.tensor([float(len(s)) for s in strips])
    strip = torch.repeat_interleave(torch.arange(len(strips)), widths.long())
    return StripBits.of(torch.tensor([float(x) for s in strips for x in s]), strip, widths)


def test_bits_of_strips_by_hand() -> None:
    # Four of eight weights are not zero: a bit for each place and a sign for each of the four.
    half = strip_bits([1, -1, 0, 0, 1, 0, 0, -1])
    assert half.total == pytest.approx(8 + 4 + STRIP_BITS)
    assert half.marginal.tolist() == pytest.approx([1.0])  # log2(½ / ½) and the sign
    # One of four: 4·H(¼) = 8 − 3·log2(3); one more than zero costs log2(3) and a sign.
    quarter = strip_bits([0, 0, 0, -1])
    assert quarter.total == pytest.approx(8 - 3 * math.log2(3) + 1 + STRIP_BITS)
    assert quarter.marginal.tolist() == pytest.approx([math.log2(3) + 1])
    # A magnitude of 2 beside one of 1: three choices between "ends" and "goes on", one goes on.
    larger = strip_bits([2, 1, 0, 0])
    assert larger.total == pytest.approx(4 + 2 + 3 * (math.log2(3) - 2 / 3) + STRIP_BITS)
    assert strip_bits([0, 0, 0]).total == STRIP_BITS


@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=20), min_size=1, max_size=5))
def test_strips_add_up(strips: list[list[int]]) -> None:
    together, alone = strip_bits(*strips), [strip_bits(s) for s in strips]
    assert together.total == pytest.approx(sum(s.total for s in alone), rel=1e-5)
    np.testing.assert_allclose(
        together.marginal, torch.cat([s.marginal for s in alone]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("train_pooler", [False, True])  # a pooler travels as a difference
def test_the_model_answers_alike_before_anything_is_rounded(train_pooler: bool) -> None:
    learner = learner_of(train_pooler=train_pooler)
    randomise(learner.adapter, 0, scale=0.5)
    with torch.no_grad():
        for name, tensor in learner.adapter.extra_tensors().items():
            tensor.add_(0.1 if "pooler" in name else 0.0)
    batch = learner.data.validation.texts[:8]
    tokens = learner.tokenizer(batch, return_tensors="pt", padding=True)
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    learner.adapter.model.eval()
    with torch.no_grad():
        before = learner.adapter.model(**inputs).logits
        weights = RoundedWeights(learner.adapter, 3.0, learner.classifier_tensors())
        replaced = weights.by_parameter(weights.weights(0.0))
        after = torch.func.functional_call(learner.adapter.model, replaced, (), inputs).logits
    difference = after - before  # the same for all classes of a text, whose first is now 0
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-4)
    assert learner.classifier_tensors() == ("classifier.weight", "classifier.bias")
    assert not bool(torch.allclose(difference, torch.zeros_like(difference), atol=1e-3))


def test_what_is_trained_is_what_a_file_holds() -> None:
    learner = learner_of()
    randomise(learner.adapter, 1, scale=0.5)
    learner.adapter.set_ranks(np.arange(learner.layout.n_projections) % 3)
    weights = RoundedWeights(learner.adapter, 1.5, learner.classifier_tensors())
    decoded = weights.decoded(weights.indices())
    read = pack(decoded, weights.coding()).tensors()
    for ours, theirs in zip(decoded.factors, read.factors, strict=True):
        left, right = ours.left @ ours.right, theirs.left @ theirs.right
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)
    for name, values in decoded.modules.items():
        np.testing.assert_array_equal(values, read.modules[name])
        assert not values[0].any()
    row = weights.weights(1.0).detach()
    load_tensors(learner.adapter, decoded)
    by_name = dict(learner.adapter.model.named_parameters())
    for name, value in weights.by_parameter(row).items():
        live = by_name[name].detach()
        part = live[tuple(slice(0, n) for n in value.shape)]
        torch.testing.assert_close(part, value, rtol=1e-5, atol=1e-6)


def test_steps_end_on_the_grid_of_the_codec() -> None:
    learner = learner_of()
    randomise(learner.adapter, 2)
    weights, coding = RoundedWeights(learner.adapter, 3.0), None
    with torch.no_grad():
        weights.log_steps.copy_(torch.linspace(-3, 0, len(weights.log_steps)))
    coding = weights.coding()
    steps = [float(step_of(coding.exponent + offset)) for offset in coding.offsets]
    whole = (weights.log_steps.detach() / LOG_GRID).round() * LOG_GRID
    np.testing.assert_allclose(steps, whole.exp()[: len(steps)], rtol=1e-5)
    assert set(coding.tensor_offsets) == {"classifier.weight", "classifier.bias"}


def test_groups_of_zeros_are_coded() -> None:
    learner = learner_of()
    randomise(learner.adapter, 6, scale=0.001)  # beside a classifier of ordinary size
    with torch.no_grad():
        for factor in learner.adapter.factors()[0]:
            factor.zero_()
    weights = RoundedWeights(learner.adapter, 1.0, learner.classifier_tensors())
    decoded = weights.decoded(weights.indices())
    read = pack(decoded, weights.coding()).tensors()
    assert read.ranks[0] == 0
    for ours, theirs in zip(decoded.factors, read.factors, strict=True):
        np.testing.assert_allclose(
            ours.left @ ours.right, theirs.left @ theirs.right, rtol=1e-6, atol=1e-12
        )
    np.testing.assert_array_equal(
        decoded.modules["classifier.weight"], read.modules["classifier.weight"]
    )


@pytest.mark.parametrize("bits", [500.0, 2000.0])
def test_steps_suit_a_size(bits: float) -> None:
    learner = learner_of()
    randomise(learner.adapter, 3)
    weights = RoundedWeights(learner.adapter, 1.0)
    before = weights.weights(0.0).detach()
    weights.coarsen_to([bits])
    assert weights.bits().total == pytest.approx(bits, rel=0.02)
    torch.testing.assert_close(weights.weights(0.0).detach(), before)


def two_prefixes() -> tuple[TransformerLearner, RoundedWeights]:
    """Return an adapter whose projections have 0, 1 or 2 components, the first in a prefix."""
    learner = learner_of()
    randomise(learner.adapter, 8, scale=0.5)
    whole = np.arange(learner.layout.n_projections) % 3
    learner.adapter.set_ranks(whole)
    ranks = [np.minimum(whole, 1), whole]
    return learner, RoundedWeights(learner.adapter, 1.5, learner.classifier_tensors(), ranks)


def test_a_prefix_is_trained_as_it_is_decoded() -> None:
    learner, weights = two_prefixes()
    row = weights.weights(1.0).detach()
    file = pack(weights.decoded(weights.indices()), weights.coding())
    decoded = [tensors for _, tensors in file.decoded()]
    assert len(decoded) == 2
    for prefix, tensors in enumerate(decoded):
        load_tensors(learner.adapter, tensors)
        live = dict(learner.adapter.model.named_parameters())
        for name, value in weights.by_parameter(row, prefix).items():
            held = live[name].detach()[tuple(slice(0, n) for n in value.shape)]
            torch.testing.assert_close(value, held, rtol=1e-5, atol=1e-6)


def test_chunks_have_bits_and_steps_of_their_own() -> None:
    _, weights = two_prefixes()
    assert sum(weights.chunk_bits(weights.bits())) == pytest.approx(weights.bits().total)
    before = weights.weights(0.0).detach()
    weights.coarsen_to([900.0, 400.0])
    assert weights.chunk_bits(weights.bits()) == pytest.approx([900.0, 400.0], rel=0.03)
    torch.testing.assert_close(weights.weights(0.0).detach(), before)


def test_a_step_for_a_prefix_leaves_later_chunks_alone() -> None:
    learner, weights = two_prefixes()
    leaf = weights.weights(0.0).detach().requires_grad_()
    with learner.adapter.at_ranks(weights.ranks[0]):
        learner.gradients_at(weights.by_parameter(leaf, 0))
    assert leaf.grad is not None
    later = ~weights._own[0]
    assert bool(later.any())
    assert not bool(leaf.grad[later].any())
    assert bool(leaf.grad[~later].any())
    weights.price(weights.bits(), [1.0]).backward()
    assert weights.latents.grad is not None
    assert not bool(weights.latents.grad[later].any())
    assert bool(weights.latents.grad[~later].any())


def test_only_weights_of_a_chunk_are_taken_away() -> None:
    _, weights = two_prefixes()
    n_alive = [weights.n_alive(0), weights.n_alive(1)]
    left = weights.without_smallest([0, 3])
    assert [int(left[own].count_nonzero()) for own in weights._own] == [n_alive[0], n_alive[1] - 3]


@pytest.mark.parametrize("bits", [2000.0, 6000.0, 12000.0])
def test_the_coder_takes_about_the_bits_that_are_counted(bits: float) -> None:
    learner = learner_of()
    randomise(learner.adapter, 4)
    weights = RoundedWeights(learner.adapter, 1.0, learner.classifier_tensors())
    weights.coarsen_to([bits])
    (chunk,) = pack(weights.decoded(weights.indices()), weights.coding()).chunks
    assert 8 * len(chunk) == pytest.approx(weights.bits().total, rel=0.05, abs=300)


@pytest.mark.parametrize("begin", [1e-5, 1e-3])
def test_a_price_rises_until_the_file_is_small(begin: float) -> None:
    controller, n_bytes = PriceController(1000, steps=400, begin=begin), 4000.0
    for step in range(400):
        price = controller.update(n_bytes, step)
        n_bytes += 0.1 * (4000 / (1 + 3000 * price) - n_bytes)  # falls as bits cost more
    assert n_bytes == pytest.approx(1000, rel=0.02)
    assert controller.first == 4000
    assert controller.price == pytest.approx(1e-3, rel=0.1)


def test_what_takes_no_bytes_yet_may_come_cheaper() -> None:
    controller = PriceController(1000, steps=400, begin=1e-4)
    assert controller.update(0.0, 0) < 1e-4
    assert controller.update(0.0, 1) < 1e-4


@pytest.mark.parametrize("target_bytes", [700, 1500])
def test_files_fit_and_learn(target_bytes: int) -> None:
    training = training_of(target_bytes, steps=60)
    losses = run(training)
    file, _ = training.finish()
    assert file.n_bits <= 8 * target_bytes
    assert training.n_bytes == file.n_bits / 8
    assert np.mean(losses[-10:]) < losses[0]
    held, read = tensors_of(training.learner.adapter), file.tensors()
    for ours, theirs in zip(held.factors, read.factors, strict=True):
        np.testing.assert_allclose(
            ours.left @ ours.right, theirs.left @ theirs.right, rtol=1e-5, atol=1e-6
        )


def test_a_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    # Before and after the first step on rounded weights.
    check_it_goes_on(lambda: training_of(900), (2, 7), tmp_path)


def test_parts_of_a_batch_add_up() -> None:
    whole, parts = training_of(900), training_of(900)
    parts.learner = learner_of(grad_accumulation=2)
    np.testing.assert_allclose(run(parts), run(whole), rtol=1e-3)


SIZES = (600, 900)


def progressive(steps: int = 24) -> ByteBudgetTraining:
    config = CodecConfig(target_bytes=1500, prefix_bytes=SIZES, rank=1, teachers=0)
    return ByteBudgetTraining(learner_of(r_max=3), config, steps, pack)


def test_every_prefix_is_an_adapter_of_its_size() -> None:
    training = progressive(steps=60)
    run(training)
    file, coding = training.finish()
    sizes = [prefix.n_bytes for prefix in file.ladder]
    assert len(sizes) == 3
    assert all(n <= size for n, size in zip(sizes, (*SIZES, 1500), strict=True))
    assert sizes == sorted(sizes)
    ranks = [tensors.ranks for _, tensors in file.decoded()]
    assert [r.max() for r in ranks] == [1, 2, 3]
    assert [tuple(r) for r in ranks] == list(coding.prefix_ranks)
    # What a prefix holds stays as it is.
    first, last = (list(file.decoded())[i][1] for i in (0, -1))
    for f, g, r in zip(first.factors, last.factors, ranks[0], strict=True):
        np.testing.assert_array_equal(f.left, g.left[:, :r])
    held = tensors_of(training.learner.adapter)
    for ours, theirs in zip(held.factors, last.factors, strict=True):
        np.testing.assert_allclose(
            ours.left @ ours.right, theirs.left @ theirs.right, rtol=1e-5, atol=1e-6
        )


def descending(steps: int = 60) -> ByteBudgetTraining:
    config = CodecConfig(target_bytes=1500, smaller_bytes=SIZES[::-1], rank=1, teachers=0)
    return ByteBudgetTraining(learner_of(), config, steps, pack)


def test_smaller_files_are_of_the_same_weights() -> None:
    training = descending()
    run(training)
    last, _ = training.finish()
    files = [file for file, _, _ in training.larger] + [last]
    assert len(files) == 3
    for file, size in zip(files, (1500, *SIZES[::-1]), strict=True):
        assert file.n_bits <= 8 * size
        held = read_container(file.to_bytes()).tensors()
        assert held.ranks.max() == 1
        assert any(f.left.any() and f.right.any() for f in held.factors)
    alone = training_of(1500, 60 - 2 * smaller_steps(training.config, 60), rank=1)
    run(alone)
    assert alone.finish()[0].to_bytes() == files[0].to_bytes()
    assert all(price > 0 for _, _, price in training.larger)


def test_smaller_files_go_on_bit_for_bit(tmp_path: Path) -> None:
    check_it_goes_on(descending, (10, 30, 45, 55), tmp_path)


def check_it_goes_on(
    make: Callable[[], ByteBudgetTraining], stops: Sequence[int], folder: Path
) -> None:
    """Stop a training at some steps, go on from a file each time, and compare with the whole."""
    whole, parts = make(), make()
    losses = run(whole)
    for stop in stops:
        while parts.n_steps < stop:
            parts.step()
        save_state(folder / "state.pt", parts.state_dict())
        parts = make()
        parts.load_state_dict(load_state(folder / "state.pt"))
    assert run(parts) == losses[stops[-1] :]
    assert parts.finish()[0].to_bytes() == whole.finish()[0].to_bytes()


def test_prefixes_go_on_bit_for_bit(tmp_path: Path) -> None:
    # In each size, before and after rounding begins.
    check_it_goes_on(progressive, (5, 13, 20), tmp_path)


def taught(steps: int = 20) -> ByteBudgetTraining:
    config = CodecConfig(target_bytes=900, rank=1, teachers=2, teacher_share=0.5)
    return ByteBudgetTraining(learner_of(), config, steps, pack)


def test_teachers_train_first_and_differ() -> None:
    training = taught()
    adapters = []
    for n in range(1, 11):
        training.step()
        assert training.n_bytes is None
        if n in (5, 10):
            assert training._teachers is not None
            adapters.append(training._teachers._snapshots[-1])
    learner = training.learner
    assert learner.adapter.ranks.tolist() == [1] * learner.layout.n_projections
    assert not learner.adapter.components(0)[0].any()  # the small one begins anew
    batch = learner._splits["train"].collate(np.arange(8))
    logits = []
    for adapter in adapters:
        with adapter.answering():
            logits.append(learner._passes._states(batch))
    each = [one.softmax(-1) for one in logits]
    assert not torch.allclose(*each, atol=1e-3)
    mean = mean_logits(logits).softmax(-1)
    torch.testing.assert_close(mean, (each[0] + each[1]) / 2)
    run(training)
    assert training.finish()[0].n_bits <= 8 * 900


def test_teachers_go_on_bit_for_bit(tmp_path: Path) -> None:
    # In each teacher, and after them before and after rounding begins.
    check_it_goes_on(taught, (3, 7, 11, 17), tmp_path)


def test_answers_and_labels_are_weighed() -> None:
    learner = learner_of()
    randomise(learner.adapter, 5)
    batch = learner._splits["train"].collate(np.arange(8))
    labels = learner._losses(batch).detach()
    teacher = AdapterSnapshot(learner.adapter)
    randomise(learner.adapter, 6)
    other = learner._losses(batch).detach()
    learner.learn_from([teacher])
    answers = learner._losses(batch).detach()
    learner.learn_from([teacher], 0.25)
    torch.testing.assert_close(learner._losses(batch).detach(), 0.25 * answers + 0.75 * other)
    assert not torch.allclose(labels, other)


def test_steps_and_ranks_of_sizes() -> None:
    config = CodecConfig(target_bytes=4000, prefix_bytes=(1000, 2000), teachers=0)
    assert small_steps(config, 100) == 100
    assert small_steps(CodecConfig(target_bytes=4000, teachers=3), 100) == 61  # 13 for each
    with pytest.raises(ConfigError, match="5 steps are too few"):
        small_steps(config, 5)
    assert ranks_for(replace(config, rank=2), learner_of().layout) == [2, 4, 6]


def test_a_file_that_cannot_be_so_small() -> None:
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 300)
    random_name = "".join(letters)  # does not compress

    def pack_long(tensors: AdapterTensors, coding: Coding) -> Container:
        return pack_as_trained(Source(tensors, BaseModel(random_name), {}), coding)

    for target, smaller in ((250, ()), (900, (600, 250))):
        config = CodecConfig(target, smaller_bytes=smaller, teachers=0)
        training = ByteBudgetTraining(learner_of(), config, 40, pack_long)
        with pytest.raises(InfeasibleSizeError, match="the target is 250"):
            run(training)
        assert training.rounding_is_next  # nobody has waited for more than the usual training


def test_pack_makes_the_same_file_again(tmp_path: Path) -> None:
    training = training_of(900)
    run(training)
    file, coding = training.finish()
    save_adapter(training.learner.adapter, tmp_path, coding=coding)
    again = pack_folder(tmp_path)
    assert again.chunks == file.chunks


def test_ranks_follow_the_size() -> None:
    layout = learner_of().layout
    numbers = sum(p.d_in + p.d_out for p in layout.projections)
    assert rank_for(1, layout) == 1
    assert rank_for(numbers // 4, layout) == 1  # two bits a number
    assert rank_for(numbers, layout) == 4


def test_shares_of_steps() -> None:
    assert rounded_steps(CodecConfig(rounded_share=0.75), 100) == 75
    assert rounded_steps(CodecConfig(rounded_share=0.01), 10) == 1
    assert rounded_steps(CodecConfig(rounded_share=0.99), 10) == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_bytes": 10},
        {"rank": 0},
        {"rounded_share": 0.0},
        {"rounded_share": 1.0},
        {"lr": 0.0},
        {"relative_step": -1},
        {"prefix_bytes": (300,)},
        {"target_bytes": 900, "prefix_bytes": (400, 300)},
        {"target_bytes": 900, "prefix_bytes": (400, 900)},
        {"target_bytes": 900, "prefix_bytes": (100, 400)},
        {"teachers": -1},
        {"teacher_share": 1.0},
        {"answer_weight": 1.5},
        {"plan_episodes": -1},
        {"plan_episodes": 1},
        {"smaller_bytes": (300,)},
        {"target_bytes": 900, "smaller_bytes": (900,)},
        {"target_bytes": 900, "smaller_bytes": (400, 500)},
        {"target_bytes": 900, "smaller_bytes": (100,)},
        {"target_bytes": 900, "smaller_bytes": (300,), "prefix_bytes": (400,)},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CodecConfig(**wrong)


def test_a_size_is_needed() -> None:
    with pytest.raises(ConfigError, match="target_bytes"):
        ByteBudgetTraining(learner_of(), CodecConfig(), 4, pack)
