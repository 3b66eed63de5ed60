"""Every method of the byte frontier on a tiny model: trained, continued, saved, read and judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.models import keyword_splits
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ModelError, RankcastError
from rankcast.learner.base_models import BaseModel
from studies.baselines.lora_xs import cores, freeze_into_lora_xs, strongest_triples
from studies.byte_frontier import methods
from studies.byte_frontier.adapters import Head, Origin, Trained, read_trained
from studies.byte_frontier.codes import (
    PACK,
    REFERENCE,
    Coded,
    half_precision,
    pack_codes,
    reference,
    simple_codes,
)
from studies.byte_frontier.judging import Judge, digest
from studies.byte_frontier.methods import METHODS
from studies.byte_frontier.training import AdapterTrainer, TaskTexts, base_model

CONFIG = FinetuneConfig(
    model="tiny", lr=1.0, total_steps=12, warmup_steps=2, batch_size=16, weight_decay=0.0, seed=3
)
SPLITS = keyword_splits()
TEXTS = TaskTexts.of(SPLITS, "tiny", 64)
SETTINGS = {"lr": 2e-2, "scale": 2.0}
SMALL = {
    "lora": {"r": 2},
    "lora_xs": {"r": 4},
    "tinylora": {"r": 2, "u": 8},
    "unilora": {"r": 2, "theta_d_length": 50},
    "fourierft": {"n_frequency": 5},
    "vera": {"r": 8, "kinds": "q v"},
    "vblora": {"r": 2, "num_vectors": 6, "vector_length": 16, "kinds": None},
    "ia3": {"kinds": "k v fc2"},
    "ln": {"norms": "LayerNorm"},
}
NUMBERS = {  # of two layers of width 32, inner width 64
    "lora": 2 * 2 * (4 * (32 + 32) + 2 * (32 + 64)),
    "lora_xs": 12 * 16,
    "tinylora": 12 * 8,
    "unilora": 50,
    "fourierft": 12 * 5,
    "vera": 4 * (8 + 32),
    "vblora": 6 * 16 + 2 * 2 * (4 * (2 + 2) + 2 * (2 + 4)),
    "ia3": 2 * (32 + 32 + 64),
    "ln": 5 * 2 * 32,
}
WEIGHTED = pytest.mark.filterwarnings("ignore::UserWarning")
pytestmark = [WEIGHTED, pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {m: replace(METHODS[m], sizes={"small": size}) for m, size in SMALL.items()}
    for module in ("methods", "training", "adapters"):
        monkeypatch.setattr(f"studies.byte_frontier.{module}.METHODS", small)


def fresh() -> BaseModel:
    return base_model("tiny", TEXTS.n_labels, CONFIG.seed, SPLITS)


def trainer(method: str) -> AdapterTrainer:
    settings = SETTINGS if method != "fourierft" else {"lr": 1.0}
    return AdapterTrainer(fresh(), method, "small", settings, config=CONFIG, texts=TEXTS.train)


def trained(method: str, folder: Path) -> tuple[Judge, Trained]:
    made = trainer(method)
    made.train()
    made.save(folder)
    judge = Judge(fresh().model)
    origin = Origin(method, "small", SETTINGS, CONFIG.seed, fresh)
    return judge, read_trained(folder, judge.base, origin)


def margins_of(judge: Judge, coded: Coded) -> torch.Tensor:
    logits = judge.logits(TEXTS.judged, coded.weights, again=1.0)
    return logits[:, 0] - logits[:, 1]


def test_every_method_is_tried() -> None:
    assert set(SMALL) == set(NUMBERS) == set(methods.METHODS)


@pytest.mark.parametrize("method", SMALL)
def test_what_is_merged_answers_as_peft_does(method: str, tmp_path: Path) -> None:
    judge, adapter = trained(method, tmp_path / "adapter")
    assert adapter.n_numbers == NUMBERS[method]
    ours = judge.logits(
        TEXTS.judged, adapter.weights(adapter.strips, adapter.head), again=1.0
    ).log_softmax(1)
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(fresh().model, str(tmp_path / "adapter")).eval()
    batch = TEXTS.judged.collate(np.arange(20))
    with torch.no_grad():
        logits = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(ours[:20], logits.log_softmax(1), atol=2e-4, rtol=0)
    alone = judge.logits(TEXTS.judged, {}, again=1.0).log_softmax(1)
    assert (ours - alone).abs().max() > 1e-2  # it does something


@pytest.mark.parametrize("method", SMALL)
def test_numbers_are_sent_in_every_code(method: str, tmp_path: Path) -> None:
    judge, adapter = trained(method, tmp_path / "adapter")
    assert adapter.head.contrasts.shape == (1, 33)
    codes = [reference(adapter), half_precision(adapter), *simple_codes(adapter)]
    sizes = {coded.code: coded.n_bytes for coded in codes}
    exact = adapter.exact_bits / 8
    assert sizes[REFERENCE] == 4 * (NUMBERS[method] + 33) + exact
    assert sizes["fp16"] == 2 * (NUMBERS[method] + 33) + exact
    whole = margins_of(judge, codes[0])
    int8 = margins_of(judge, next(coded for coded in codes if coded.code == "int8"))
    assert (whole - int8).abs().mean() < 0.15 * whole.std()
    packed = list(pack_codes(adapter, judge.base))
    assert {coded.family for coded in packed} == {PACK}
    n_bytes = [coded.n_bytes for coded in packed]
    assert n_bytes == sorted(n_bytes, reverse=True)
    finest = margins_of(judge, packed[0])
    assert (whole - finest).abs().mean() < 0.35


def test_indices_of_vb_lora_are_sent_exactly(tmp_path: Path) -> None:
    _, adapter = trained("vblora", tmp_path / "adapter")
    sub_vectors = 2 * 2 * (4 * (2 + 2) + 2 * (2 + 4))  # layers, rank, places of each map
    assert adapter.exact_bits == 3 * 2 * sub_vectors  # two of six vectors each


@pytest.mark.parametrize("method", ["lora", "lora_xs", "vblora"])
def test_training_continues_bit_by_bit(method: str, tmp_path: Path) -> None:
    whole, first = trainer(method), trainer(method)
    whole.train()
    for _ in range(5):
        first.step()
    second = trainer(method)
    second.load_state_dict(first.state_dict())
    second.train(tmp_path / "checkpoint.pt")
    theirs = second.state_dict()["trained"]
    for name, value in whole.state_dict()["trained"].items():
        assert torch.equal(value, theirs[name])
    with pytest.raises(CheckpointError, match="another method"):
        trainer("ia3").load_state_dict(first.state_dict())


def test_a_checkpoint_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.byte_frontier.training.CHECKPOINT_EVERY", 4)
    first, whole = trainer("lora"), trainer("lora")
    first.train(tmp_path / "checkpoint.pt")
    again = trainer("lora")
    monkeypatch.setattr(again, "step", lambda: pytest.fail("all steps were taken"))
    again.train(tmp_path / "checkpoint.pt")
    whole.train()
    for name, value in whole.state_dict()["trained"].items():
        assert torch.equal(value, again.state_dict()["trained"][name])


def test_training_learns_and_tells_when_it_diverges() -> None:
    made = trainer("lora")
    losses = [made.step() for _ in range(CONFIG.total_steps)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    with torch.no_grad():
        next(iter(made._trained.values())).fill_(float("nan"))
    with pytest.raises(RankcastError, match="diverged"):
        made.step()


def test_global_randomness_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for method in ("vblora", "lora_xs"):
        trainer(method)
    assert torch.equal(torch.rand(1), expected)


def test_waves_are_what_peft_transforms(tmp_path: Path) -> None:
    made = trainer("fourierft")
    made.train()
    layer = made.model.get_base_model().bert.encoder.layer[1].intermediate.dense
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    layer.base_layer.float()
    with torch.no_grad():
        added = layer.forward(x) - layer.base_layer(x)
        expected = x @ layer.get_delta_weight("default").T
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=1e-4)


def test_lora_xs_trains_its_cores_alone() -> None:
    made = trainer("lora_xs")
    found = cores(made.model, "default")
    assert {tuple(core.shape) for core in found.values()} == {(4, 4)}
    trained_ones = [n for n, p in made.model.named_parameters() if p.requires_grad]
    assert all(".core" in n or "classifier" in n for n in trained_ones)
    with pytest.raises(ModelError, match="no LoRA named"):
        freeze_into_lora_xs(made.model, "other", torch.Generator())


def test_strongest_triples_give_the_best_rank_r() -> None:
    weight = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    left, basis = strongest_triples(weight, 2)
    _, sizes, _ = torch.linalg.svd(weight)
    rest = torch.linalg.matrix_norm(weight - left @ basis)
    torch.testing.assert_close(rest, sizes[2:].square().sum().sqrt())
    torch.testing.assert_close(left.T @ left, torch.eye(2))


def test_contrasts_of_a_classifier_by_hand() -> None:
    weight = np.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], np.float32)
    head = Head(weight, np.array([0.0, 1.0, 2.0], np.float32))
    # (first - second) / √2 and (first + second - 2 · third) / √6, the bias last
    expected = np.array([[1, -3, -1], [3, 3, -3]]) / np.sqrt([[2.0], [6.0]])
    np.testing.assert_allclose(head.contrasts, expected, rtol=1e-6)
    again = Head.of_contrasts(head.contrasts)
    x = np.array([[0.3, -2.0], [1.0, 1.0]], np.float32)
    for one, other in ((0, 1), (1, 2)):  # what classes differ by is as it was
        gap = [h.weight[one] @ x.T + h.bias[one] - h.weight[other] @ x.T - h.bias[other]
               for h in (head, again)]  # fmt: skip
        np.testing.assert_allclose(gap[0], gap[1], atol=1e-5)


def test_weights_are_judged_once_and_leave_no_trace(tmp_path: Path) -> None:
    judge, adapter = trained("lora", tmp_path / "adapter")
    weights = adapter.weights(adapter.strips, adapter.head)
    before = judge.logits(TEXTS.judged, {}, again=0.5)
    first = judge.judge_once(TEXTS.judged, weights, tmp_path / "judged")
    [file] = (tmp_path / "judged").iterdir()
    assert file.stem == digest(weights)
    file.write_text(file.read_text().replace(str(first["loss"]), "7.5"))
    assert judge.judge_once(TEXTS.judged, weights, tmp_path / "judged")["loss"] == 7.5
    assert torch.equal(judge.logits(TEXTS.judged, {}, again=0.5), before)
    other = dict(weights)
    name = next(iter(other))
    other[name] = other[name] + 1e-6 * torch.ones_like(other[name])
    assert digest(other) != digest(weights)


def test_close_answers_are_those_of_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch computes in bfloat16 on every processor, if slowly
    monkeypatch.setattr("studies.byte_frontier.judging.fast_type", lambda: torch.bfloat16)
    judge, adapter = trained("lora", tmp_path / "adapter")
    weights = adapter.weights(adapter.strips, adapter.head)
    exact = judge.logits(TEXTS.judged, weights, again=1.0)
    mixed = judge.logits(TEXTS.judged, weights, again=0.3)
    low = judge.logits(TEXTS.judged, weights, again=0.0)
    changed = (mixed != low).any(1)
    assert 0 < changed.sum() <= round(0.3 * len(TEXTS.judged))
    torch.testing.assert_close(mixed[changed], exact[changed], atol=1e-5, rtol=1e-5)
    margins = (low[:, 0] - low[:, 1]).abs()
    assert margins[changed].max() <= margins[~changed].max()


def test_without_bfloat16_every_answer_is_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, adapter = trained("lora", tmp_path / "adapter")
    weights = adapter.weights(adapter.strips, adapter.head)
    monkeypatch.setattr("studies.byte_frontier.judging.fast_type", lambda: torch.bfloat16)
    exact = judge.logits(TEXTS.judged, weights, again=1.0)
    monkeypatch.setattr("studies.byte_frontier.judging.fast_type", lambda: torch.float32)
    found = judge.logits(TEXTS.judged, weights, again=0.0)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)
