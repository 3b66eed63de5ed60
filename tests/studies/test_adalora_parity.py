from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import keyword_splits, tiny_model
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ConfigError, RankcastError
from rankcast.learner.base_models import load_model
from rankcast.learner.batching import BucketedBatches, tokenise
from rankcast.learner.objectives import SequenceClassification
from rankcast.records import AdapterLayout, Projection
from rankcast.training.folder import load_state, save_state
from studies.baselines.adalora import AdaLoraFinetuner, AdaLoraSchedule, ranks_for_params

STEPS = 20
CONFIG = FinetuneConfig(
    model="tiny",
    lr=2e-2,
    alpha=8.0,
    total_steps=STEPS,
    warmup_steps=2,
    batch_size=16,
    mixed_precision="no",
    seed=3,
)
DATA = keyword_splits()
SCHEDULE = AdaLoraSchedule(STEPS, 17, init_r=3, t_init=4, t_final=6, delta_t=3)
PRUNED = STEPS - SCHEDULE.t_final


def tuner(schedule: AdaLoraSchedule = SCHEDULE, **changes: Any) -> AdaLoraFinetuner:
    return AdaLoraFinetuner(replace(CONFIG, **changes), DATA, schedule)


def trained(schedule: AdaLoraSchedule = SCHEDULE) -> tuple[AdaLoraFinetuner, list[float]]:
    made, losses = tuner(schedule), []
    made.train(lambda _, loss: losses.append(loss))
    return made, losses


def by_the_book() -> tuple[list[float], dict[str, list[bool]]]:
    """Train as PEFT's documentation says, without anything of ours but model and batches."""
    from peft import AdaLoraConfig, get_peft_model

    base = load_model("tiny", SequenceClassification(2), CONFIG.seed, train_texts=DATA.train.texts)
    torch.manual_seed(CONFIG.seed)
    config = AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=3,
        target_r=1,
        lora_alpha=8,
        target_modules=["query", "key", "value", "dense"],
        exclude_modules=[*base.head, "pooler.dense", "bert.pooler.dense"],
        modules_to_save=list(base.head),
        orth_reg_weight=0.1,
        tinit=4,
        tfinal=6,
        deltaT=3,
        total_step=STEPS,
    )
    model: Any = get_peft_model(base.model, config)
    model.base_model.rankallocator.target_bgt = 17
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=CONFIG.lr, weight_decay=CONFIG.weight_decay)
    tokens = tokenise(DATA.train, base.tokenizer, CONFIG.max_length)
    batches = BucketedBatches(tokens.lengths, CONFIG.batch_size, CONFIG.seed)
    model.train()
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = CONFIG.lr_at(step)
        batch = tokens.collate(batches.peek())
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        output = model(**inputs, labels=batch.labels)
        losses.append(
            float(torch.nn.functional.cross_entropy(output.logits.detach(), batch.labels))
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, CONFIG.max_grad_norm)
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        batches.advance()
    return losses, model.peft_config["default"].rank_pattern


def test_it_trains_and_prunes_as_the_documentation_of_peft_does() -> None:
    made, losses = trained()
    expected, pattern = by_the_book()
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    assert made.model.peft_config["default"].rank_pattern == pattern


def test_what_remains_is_the_budget_in_the_order_of_the_layout() -> None:
    made, _ = trained()
    ranks = made.ranks
    assert ranks.sum() == 17
    assert ranks.min() < ranks.max() <= 3
    modules = dict(made.model.base_model.model.named_modules())
    live = [int((modules[p.name].lora_E["default"] != 0).sum()) for p in made.layout.projections]
    assert ranks.tolist() == live
    sizes = [
        modules[p.name].in_features + modules[p.name].out_features + 1
        for p in made.layout.projections
    ]
    assert made.sent_params == sum(r * s for r, s in zip(ranks.tolist(), sizes, strict=True))


def test_before_pruning_every_projection_has_its_initial_rank() -> None:
    made = tuner()
    assert made.layout.n_projections == 12
    assert made.ranks.tolist() == [3] * 12
    # Width 32, inner width 64 or as the model says: all from the layout's own widths.
    widths = sum(p.d_in + p.d_out + 1 for p in made.layout.projections)
    assert made.sent_params == 3 * widths


@pytest.mark.parametrize("stop", [1, SCHEDULE.t_init + 2, PRUNED - 1, PRUNED, PRUNED + 1])
def test_it_continues_bit_exactly(stop: int, tmp_path: Path) -> None:
    whole, losses = trained()
    first = tuner()
    for _ in range(stop):
        first.step()
    state = first.state_dict()
    save_state(tmp_path / "state.pt", state)
    first.train()  # what was returned must not change with the model
    for kept in (state, load_state(tmp_path / "state.pt")):
        second, rest = tuner(), []
        second.load_state_dict(kept)
        second.train(lambda _, loss, rest=rest: rest.append(loss))
        assert rest == losses[stop:]
        assert second.ranks.tolist() == whole.ranks.tolist()
        for mine, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_judging_a_split_takes_every_text_once() -> None:
    made, _ = trained()
    loss, correct = made.judge_texts("test")
    assert loss.shape == correct.shape == (24,)
    assert set(correct.tolist()) <= {0.0, 1.0}
    assert correct.mean() > 0.8
    wrong = correct == 0.0
    assert (loss[wrong] >= np.log(2) - 1e-6).all()
    assert (loss[~wrong] <= np.log(2) + 1e-6).all()


def test_global_randomness_is_left_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    tuner().step()
    assert torch.equal(torch.rand(3), expected)


def test_a_decoder_whose_modules_begin_with_model(tmp_path: Path) -> None:
    tiny_model("opt").save_pretrained(tmp_path)
    encoder = load_model("tiny", SequenceClassification(2), 0, train_texts=("under the window",))
    encoder.tokenizer.save_pretrained(tmp_path)
    schedule = AdaLoraSchedule(4, 10, init_r=2, t_init=1, t_final=1, delta_t=1)
    data = keyword_splits(n_train=16, n_held_out=4)
    words = dict.fromkeys(data.train.texts, "the window")
    data = replace(data, train=replace(data.train, texts=tuple(words[t] for t in data.train.texts)))
    made = AdaLoraFinetuner(replace(CONFIG, model=str(tmp_path)), data, schedule)
    made.train()
    assert made.layout.projections[0].name.startswith("model.decoder")
    assert made.ranks.sum() == 10


def test_a_schedule_is_derived() -> None:
    # 36 projections at a mean rank of 8: 1.5 · 8 = 12 to begin with; a tenth and three tenths.
    schedule = AdaLoraSchedule.derive(800, 288, 36)
    assert schedule == AdaLoraSchedule(800, 288, init_r=12, t_init=80, t_final=240)
    # 1.5 · 50 / 36 = 2.08…, rounded up; 1.5 · 18 / 36 = 0.75, but at least 2.
    assert AdaLoraSchedule.derive(100, 50, 36).init_r == 3
    small = AdaLoraSchedule.derive(15, 18, 36, delta_t=2, orthogonality_weight=0.5)
    assert small == AdaLoraSchedule(15, 18, 2, 1, 4, delta_t=2, orthogonality_weight=0.5)


@pytest.mark.parametrize("n_projections", [1, 12, 36])
@pytest.mark.parametrize("total_ranks", [1, 2, 35, 36, 37, 72, 1000])
def test_a_derived_schedule_always_prunes(total_ranks: int, n_projections: int) -> None:
    schedule = AdaLoraSchedule.derive(10, total_ranks, n_projections)
    assert total_ranks < schedule.init_r * n_projections


@pytest.mark.parametrize(
    "changes",
    [
        {"t_init": 14},
        {"t_init": -1},
        {"t_final": 16},
        {"delta_t": 0},
        {"total_ranks": 0},
        {"init_r": 0},
    ],
)
def test_a_schedule_that_never_prunes_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(SCHEDULE, **changes)


@pytest.mark.parametrize("total_ranks", [36, 37])
def test_a_budget_that_does_not_fall_is_refused_before_training(total_ranks: int) -> None:
    with pytest.raises(ConfigError, match="only prunes"):
        tuner(replace(SCHEDULE, total_ranks=total_ranks))


def test_a_state_of_another_initial_rank_is_refused() -> None:
    other = tuner(replace(SCHEDULE, init_r=4))
    with pytest.raises(CheckpointError, match="initial rank"):
        tuner().load_state_dict(other.state_dict())


def test_divergence_is_said() -> None:
    made = tuner(lr=1e30, max_grad_norm=1e30, warmup_steps=0)
    with pytest.raises(RankcastError, match="Lower the"):
        made.train()


def test_ranks_for_params_are_counted_at_the_mean_cost_of_a_rank() -> None:
    layout = AdapterLayout((Projection("a", 0, "q", 4, 5), Projection("b", 0, "k", 9, 20)), 4)
    assert ranks_for_params(layout, 100) == 5  # (10 + 30) / 2 numbers a rank
    assert ranks_for_params(layout, 1) == 1
