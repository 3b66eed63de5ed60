from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.learner.batching import BucketedBatches, TokenisedDataset, tokenise
from rankcast.learner.texts import TextDataset
from rankcast.records import TextStats


def walk(batches: Any, n: Any) -> Any:
    seen = []
    for _ in range(n):
        seen.append(batches.peek().tolist())
        batches.advance()
    return seen


def tokenised(lengths: Any, labels: Any = None) -> Any:
    stats = TextStats(np.arange(len(lengths), dtype=float), np.full(len(lengths), 0.25))
    tokens = tuple(np.arange(1, n + 1) for n in lengths)
    return TokenisedDataset(tokens, None if labels is None else np.array(labels), stats, 0)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=200),
    st.integers(1, 16),
    st.integers(0, 1000),
)
def test_an_epoch_shows_every_text_at_most_once_in_full_batches(
    lengths: Any, size: Any, seed: Any
) -> None:
    batches = BucketedBatches(lengths, size, seed)
    epoch = walk(batches, len(lengths) // min(size, len(lengths)))
    seen = [i for batch in epoch for i in batch]
    assert all(len(batch) == min(size, len(lengths)) for batch in epoch)
    assert len(set(seen)) == len(seen) > len(lengths) - size
    assert (batches._epoch, batches._position) == (1, 0)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    lengths = np.random.default_rng(0).integers(3, 50, 100)
    first = walk(BucketedBatches(lengths, 8, seed=1), 24)
    assert first == walk(BucketedBatches(lengths, 8, seed=1), 24)
    assert first != walk(BucketedBatches(lengths, 8, seed=2), 24)
    assert first[:12] != first[12:]


def test_batches_hold_texts_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 100, 400)
    spreads = [np.ptp(lengths[b]) for b in walk(BucketedBatches(lengths, 8, seed=0), 50)]
    assert np.mean(spreads) < 5  # about 97 · 8 / 400; unsorted batches spread over about 75


@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_share_the_batches_of_one(n_processes: Any) -> None:
    lengths = np.random.default_rng(0).integers(3, 50, 100)
    one = BucketedBatches(lengths, 8, seed=1)
    many = [BucketedBatches(lengths, 8, 1, p, n_processes) for p in range(n_processes)]
    for _ in range(15):
        shares = [b.share(b.peek()).tolist() for b in many]
        assert sorted(i for share in shares for i in share) == sorted(one.peek().tolist())
        assert {len(share) for share in shares} == {8 // n_processes}
        for batches in (one, *many):
            batches.advance()


@pytest.mark.parametrize("steps", [0, 1, 12, 13, 30])
def test_continuing_in_the_middle(steps: Any) -> None:
    lengths = np.random.default_rng(0).integers(3, 50, 100)
    batches = BucketedBatches(lengths, 8, seed=1)
    walk(batches, steps)
    other = BucketedBatches(lengths, 8, seed=1)
    other.load_state_dict(batches.state_dict())
    assert walk(other, 20) == walk(batches, 20)


def test_another_stream_cannot_be_continued() -> None:
    state = BucketedBatches([3] * 20, 4, seed=1).state_dict()
    for other in (
        BucketedBatches([3] * 20, 4, seed=2),
        BucketedBatches([3] * 20, 5, seed=1),
        BucketedBatches([3] * 21, 4, seed=1),
    ):
        with pytest.raises(CheckpointError, match="same data, batch size and seed"):
            other.load_state_dict(state)


def test_batches_that_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match="shared evenly"):
        BucketedBatches([3] * 20, 5, 0, process=0, n_processes=2)
    with pytest.raises(DataError, match="too few for 4 processes"):
        BucketedBatches([3] * 3, 4, 0, process=0, n_processes=4)


def test_collate_pads_to_the_longest_of_the_batch() -> None:
    batch = tokenised([2, 4, 9], labels=[1, 0, 1]).collate(np.array([1, 0]))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    assert batch.text.lexical_entropy.tolist() == [0.5]
    assert batch.text.oov_rate.tolist() == [0.25]


def test_text_statistics_are_of_the_whole_batch() -> None:
    batch = tokenised([2, 4, 9, 3]).collate(np.array([0]), whole=np.array([0, 1, 2, 3]))
    assert batch.text.lexical_entropy.tolist() == [1.5]
    assert batch.labels is None


def test_evaluation_order_covers_everything_once() -> None:
    tokens = tokenised([5, 1, 4, 2, 3])
    assert [b.tolist() for b in tokens.in_order(2)] == [[1, 3], [4, 2], [0]]
    assert [b.tolist() for b in tokens.in_order(2, np.array([0, 1, 2]))] == [[1, 2], [0]]


class CharTokenizer:
    pad_token_id = 0
    unk_token_id = None

    def __call__(self, texts: Any, *, max_length: Any = None, **kwargs: Any) -> Any:
        return {"input_ids": [[ord(c) for c in text.strip("~")][:max_length] for text in texts]}


def test_tokenise_cuts_and_keeps_labels() -> None:
    data = TextDataset(("abc def", "g"), (1, 0), ("x", "y"))
    tokens = tokenise(data, CharTokenizer(), max_length=4)
    assert tokens.lengths.tolist() == [4, 1]
    assert tokens.labels is not None
    assert tokens.labels.tolist() == [1, 0]
    assert tokens.stats.oov_rate.tolist() == [1.0, 0.0]


def test_tokenise_refuses_what_cannot_be_batched() -> None:
    data = TextDataset(("abc", "~~"))
    with pytest.raises(DataError, match=r"row 1.*no tokens"):
        tokenise(data, CharTokenizer(), max_length=4)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        tokenise(data, CharTokenizer(), max_length=1)
    without_padding = CharTokenizer()
    without_padding.pad_token_id = None
    with pytest.raises(ConfigError, match="no padding token"):
        tokenise(data, without_padding, max_length=4)
