from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import keyword_splits
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError, DataError
from rankcast.learner.texts import DatasetSplits, TextDataset
from rankcast.learner.transformer import TransformerLearner
from studies.harness.spec import RunContext
from studies.shared.judging import PlanJudge, pack, pack_groups, unpack, unpack_groups
from studies.shared.tasks import LiveTask, hold_out, sentences_of, train_to_end

CONFIG = FinetuneConfig(
    model="tiny",
    lr=2e-2,
    r_max=4,
    alpha=4.0,
    total_steps=12,
    warmup_steps=2,
    batch_size=8,
    nested_prob=1.0,
    nested_levels="spread",
    measure_reference=False,
    mixed_precision="no",
)
DATA = keyword_splits(n_train=32, n_held_out=6)
WORDS = tuple(f"w{i}" for i in range(40))


def dataset(texts: list[str]) -> TextDataset:
    return TextDataset(tuple(texts), tuple(i % 2 for i in range(len(texts))), ("bad", "good"))


def phrases(seed: int, n_sentences: int = 60) -> list[str]:
    """Return sentences and, as in SST-2, phrases out of them, all in disorder."""
    rng = np.random.default_rng(seed)
    phrases = set()
    for _ in range(n_sentences):
        words = rng.choice(WORDS, rng.integers(8, 20)).tolist()
        for _ in range(6):
            a, b = sorted(rng.choice(len(words) + 1, 2, replace=False).tolist())
            phrases.add(" ".join(words[a:b]))
        phrases.add(" ".join(words) + " ")  # SST-2's texts end in a blank
    return rng.permutation(sorted(phrases)).tolist()


def whole(seed: int) -> DatasetSplits:
    return DatasetSplits(dataset(phrases(seed)), dataset(["a b c d"]), dataset(["e f g h", "i j"]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_trained_on_contains_or_lies_within_what_is_held_out(seed: int) -> None:
    given_ = whole(seed)
    shared, _ = hold_out(given_, n_held_out=12, n_probe=7)
    held = shared.test.texts[3:]
    assert (len(held), len(shared.validation), len(shared.test)) == (12, 7, 15)
    assert shared.test.texts[:3] == ("a b c d", "e f g h", "i j")
    assert not set(held) & set(shared.validation.texts)
    away = [text.strip() for text in (*held, *shared.validation.texts)]
    assert all(len(text.split()) >= 10 for text in away)
    assert 0 < len(shared.train) < len(given_.train) - 19
    for text in (text.strip() for text in shared.train.texts):
        assert not any(phrase in text for phrase in away)
        if len(text.split()) >= 4:
            assert not any(text in phrase for phrase in away)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_by_sentence_fewer_sentences_lose_their_phrases(seed: int) -> None:
    given_ = whole(seed)
    texts, sentence = given_.train.texts, sentences_of(given_.train.texts)
    owner = {text: texts[sentence[i]] for i, text in enumerate(texts)}
    whole_ones, groups = hold_out(given_, n_held_out=30, n_probe=10, by_sentence=True)
    scattered, own = hold_out(given_, n_held_out=30, n_probe=10)
    held, few = ({owner[t] for t in s.test.texts[3:]} for s in (scattered, whole_ones))
    assert len(few) < len(held)
    assert len(whole_ones.train) > len(scattered.train)
    for text in whole_ones.train.texts:
        if len(text.split()) >= 4:
            assert owner[text] not in few
    assert len(set(own.tolist())) == len(scattered.test)
    pairs = list(zip(groups.tolist(), whole_ones.test.texts, strict=True))
    assert len(set(groups.tolist())) == 3 + len(few)
    assert len({(group, owner.get(text, text)) for group, text in pairs}) == 3 + len(few)


def test_a_phrase_belongs_to_the_longest_text_around_it() -> None:
    texts = [
        "one two three four ",
        "zero one two three four five",
        "one two three",
        "six",
        "a b c d",
    ]
    assert sentences_of(texts) == [1, 1, 2, 3, 4]


def test_labels_stay_with_their_texts() -> None:
    given_ = whole(0)
    label = dict(zip(given_.train.texts, given_.train.labels or (), strict=True))
    shared, _ = hold_out(given_, n_held_out=12, n_probe=7)
    for part, skipped in ((shared.train, 0), (shared.validation, 0), (shared.test, 3)):
        pairs = list(zip(part.texts, part.labels or (), strict=True))[skipped:]
        assert pairs
        assert all(label[text] == y for text, y in pairs)


def test_every_call_holds_out_the_same() -> None:
    one, other = (hold_out(whole(0), 12, 7, by_sentence=True) for _ in range(2))
    assert one[0] == other[0]
    assert one[1].tolist() == other[1].tolist()


def test_short_phrases_and_unrelated_texts_stay() -> None:
    long = [f"{i} one two three four five six seven eight nine" for i in range(3)]
    texts = [*long, "three four", "three four five", "three four five six", "something else"]
    shared, _ = hold_out(DatasetSplits(dataset(texts), dataset(["x"]), dataset(["y"])), 1, 1)
    kept = set(shared.train.texts)
    assert {"three four", "three four five", "something else"} < kept
    assert "three four five six" not in kept
    assert len(kept & set(long)) == 1


def test_a_pool_without_a_slice_of_training_texts() -> None:
    shared, _ = hold_out(whole(0), n_held_out=0, n_probe=5)
    assert shared.test.texts == ("a b c d", "e f g h", "i j")
    assert len(shared.validation) == 5


def test_a_task_reads_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "films").mkdir()
    for name, texts in (("train", phrases(0)), ("validation", ["a b", "c"]), ("test", ["d", "e"])):
        rows = [f"{i % 2}\t{text}" for i, text in enumerate(texts)]
        (tmp_path / "films" / f"{name}.tsv").write_text("\n".join(["label\tsentence", *rows]))
    task = LiveTask("films", "films", n_held_out=3, n_probe=4, finetune=CONFIG)
    assert len(task.splits(tmp_path).test) == 2 + 2 + 3
    assert len(set(task.groups(tmp_path).tolist())) == 2 + 2 + 3
    groups = replace(task, n_held_out=12, by_sentence=True).groups(tmp_path)
    assert len(groups) == 2 + 2 + 12 > len(set(groups.tolist()))
    assert unpack_groups(pack_groups(groups), 16).max() + 1 == len(set(groups.tolist()))
    monkeypatch.setattr("studies.shared.tasks.QUICK_TEXTS", 3)
    for scale, n_probe, n_judged in (("default", 4, 7), ("quick", 3, 3)):
        context = RunContext(tmp_path, scale, {}, {}, tmp_path)  # type: ignore[arg-type]
        shared = task.splits_for(context)
        assert (len(shared.validation), len(shared.test)) == (n_probe, n_judged)
        assert shared.train == task.splits(tmp_path).train


@pytest.mark.parametrize("data", [None, Path("/no/such/folder")])
def test_a_task_without_data_says_where_it_looked(data: Path | None) -> None:
    task = LiveTask("films", "films", 3, 4, CONFIG)
    with pytest.raises(DataError, match="RANKCAST_DATA"):
        task.splits(data)


@given(st.lists(st.booleans(), max_size=70))
def test_answers_survive_packing(answers: list[bool]) -> None:
    correct = np.array(answers, dtype=bool)
    packed = pack(correct)
    assert packed.isascii()
    assert unpack(packed, len(answers)).tolist() == answers


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_groups_survive_packing(sizes: list[int]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = 7 - 2 * groups
    assert unpack_groups(pack_groups(labels), len(groups)).tolist() == groups.tolist()


def test_a_torn_group_cannot_be_packed() -> None:
    with pytest.raises(ConfigError, match="follow one another"):
        pack_groups(np.array([0, 1, 0]))


class FakeLearner:
    """Answers rightly whatever is at or below its plan's sum; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def judge_texts(self, split: str, ranks: Any, max_examples: Any) -> Any:
        assert split == "test"
        assert max_examples is None
        self.asked.append(ranks.tolist())
        correct = np.arange(5) < ranks.sum()
        return np.arange(5.0), correct.astype(float), np.ones(5)


def test_a_plan_is_judged_once_whoever_asks(tmp_path: Path) -> None:
    learner: Any = FakeLearner()
    judge = PlanJudge(learner, tmp_path / "judged")
    first = judge(np.array([1, 2]))
    assert first.correct.tolist() == [True, True, True, False, False]
    assert first.accuracy == pytest.approx(0.6)
    assert first.loss == pytest.approx(2.0)
    assert judge(np.array([1, 2], dtype=np.int32)).accuracy == pytest.approx(0.6)
    assert judge(np.array([2, 1])).accuracy == pytest.approx(0.6)
    assert judge(np.array([0, 0])).accuracy == 0
    again = PlanJudge(learner, tmp_path / "judged")(np.array([1, 2]))
    assert again.correct.tolist() == first.correct.tolist()
    assert learner.asked == [[1, 2], [2, 1], [0, 0]]
    assert len(list((tmp_path / "judged").iterdir())) == 3  # nothing partial


def learner() -> TransformerLearner:
    return TransformerLearner(CONFIG, DATA)


def equal(a: TransformerLearner, b: TransformerLearner) -> bool:
    mine, other = a.adapter.state_dict(), b.adapter.state_dict()
    return mine.keys() == other.keys() and all(
        torch.equal(x, other[name]) if torch.is_tensor(x) else x == other[name]
        for name, x in mine.items()
    )


def test_training_resumes_bit_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.shared.tasks.CHECKPOINT_EVERY", 5)
    full = np.full(12, 4)
    straight = train_to_end(learner(), full, tmp_path / "straight.pt")
    assert straight.n_steps == 12

    stopped = learner()
    step, steps = stopped.train_step, []

    def until_interrupted() -> float:
        if len(steps) == 8:
            raise KeyboardInterrupt
        steps.append(step())
        return steps[-1]

    monkeypatch.setattr(stopped, "train_step", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_to_end(stopped, full, tmp_path / "resumed.pt")
    resumed = train_to_end(learner(), full, tmp_path / "resumed.pt")
    assert resumed.n_steps == 12
    assert equal(resumed, straight)
    assert not equal(stopped, straight)


def test_several_plans_are_trained_in_turn_and_no_other(tmp_path: Path) -> None:
    plans, learning = np.array([[1] * 12, [3] * 12]), learner()
    learning.config = replace(CONFIG, nested_prob=0.0)
    apply, applied = learning.apply, []

    def noted(ranks: Any) -> None:
        applied.append(int(ranks[0, 0]))
        apply(ranks)

    learning.apply = noted  # type: ignore[method-assign]
    train_to_end(learning, plans, tmp_path / "plans.pt")
    assert len(applied) == 12
    assert set(applied) == {1, 3}
    start, end = learner().adapter.state_dict(), learning.adapter.state_dict()
    names = [name for name in end if name.endswith(".Q")]
    assert len(names) == 12
    for name in names:
        after = end[name]
        assert not torch.equal(after[:3], start[name][:3])
        assert torch.equal(after[3:], start[name][3:])


def test_a_finished_training_is_kept_whole(tmp_path: Path) -> None:
    first = train_to_end(
        learner(), np.full(12, 4), tmp_path / "done.pt"
    )  # 12 is no multiple of 100
    second = learner()

    def never() -> float:
        raise AssertionError

    second.train_step = never  # type: ignore[method-assign]
    assert equal(train_to_end(second, np.full(12, 4), tmp_path / "done.pt"), first)


def test_a_step_without_measuring_trains_the_same() -> None:
    measured, plain = learner(), learner()
    plan = np.full((1, 12), 2)
    for one in (measured, plain):
        one.apply(plan)
    for _ in range(3):
        measured.step()
        loss = plain.train_step()
        assert np.isfinite(loss)
    assert plain.n_steps == 3
    assert equal(measured, plain)


def test_levels_spread_over_all_sizes_of_adapter() -> None:
    def mean_shares(levels: Any) -> np.ndarray:
        drawn = []
        live = TransformerLearner(FinetuneConfig(**{**vars(CONFIG), "nested_levels": levels}), DATA)
        plan = np.zeros(1000, dtype=np.int64)
        for step in range(200):
            live.optimisation.n_steps = step
            ranks = live._training_ranks(plan)
            assert ranks.min() >= 0
            assert ranks.max() <= 4
            drawn.append(ranks.mean() / 4)
        return np.array(drawn)

    even, spread = mean_shares("even"), mean_shares("spread")
    assert np.abs(even - 0.5).max() < 0.06
    # A level drawn evenly from 0..1 has quarters at 0.25, 0.5 and 0.75.
    assert np.quantile(spread, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
