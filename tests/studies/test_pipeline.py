"""The pipeline of `second_task` and `second_model`, on a task that takes seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import keyword_splits
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import DataError
from studies.harness.spec import Job, Result, Row, RunContext
from studies.second_model.small_decoder import DecoderConfig, shared_decoder
from studies.shared import pipeline
from studies.shared.pipeline import (
    Pipeline,
    PipelineSettings,
    equal_bits_uniform,
    run_pipeline,
)
from studies.shared.pipeline_presentation import present
from studies.shared.tasks import LiveTask
from studies.surrogate.world import WorldConfig, synthetic_world

CONFIG = FinetuneConfig(
    model="tiny",
    r_max=2,
    alpha=2.0,
    lr=5e-3,
    warmup_steps=2,
    total_steps=20,
    batch_size=8,
    orthogonality_weight=0.0,
    nested_prob=1.0,
    nested_levels="spread",
    measure_reference=False,
    mixed_precision="no",
)
SETTINGS = PipelineSettings(
    "tiny", 20, probes=20, episodes=2, teacher_episodes=2, judge_db=(5.0, 15.0)
)
DECODER = DecoderConfig(
    layers=1, width=16, heads=2, words_of="tiny", vocabulary=30, length=32, window=8,
    batch_size=2, steps=4, warmup_steps=1, save_every=1,
)  # fmt: skip


def _run(seed: int, scratch: Path) -> dict[str, Any]:
    scratch.mkdir(exist_ok=True)
    return run_pipeline(replace(CONFIG, seed=seed), keyword_splits(), SETTINGS, scratch)


def _row(seed: int, values: dict[str, Any]) -> Row:
    return Row(Job(f"tiny-{seed}", seed), values, 1.0, 1.0, "cpu", {})


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def values(scratch: Path) -> dict[str, Any]:
    return _run(0, scratch)


def test_every_method_is_judged_on_the_same_texts(values: dict[str, Any]) -> None:
    n_texts = len(keyword_splits().test.texts)
    for method in values["methods"].values():
        assert [seen["snr_db"] for seen in method["live"]] == [5.0, 15.0]
        assert {seen["n_texts"] for seen in method["live"]} == {n_texts}
    assert values["adalora"]["n_texts"] == n_texts


def test_uniform_and_adalora_have_no_more_than_airllm(values: dict[str, Any]) -> None:
    for ours, theirs in zip(
        values["methods"]["airllm"]["plans"], values["methods"]["uniform"]["plans"], strict=True
    ):
        assert theirs["payload_bits"] <= ours["payload_bits"]
    adalora = values["adalora"]
    assert sum(adalora["ranks"]) == adalora["total_ranks"]


def test_an_interrupted_job_ends_as_an_uninterrupted_one(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studies.shared.tasks.CHECKPOINT_EVERY", 5)
    monkeypatch.setattr("studies.baselines.adalora.CHECKPOINT_EVERY", 5)
    learner, tuner = pipeline.TransformerLearner, pipeline.AdaLoraFinetuner
    for owner, method, after in ((learner, "train_step", 8), (tuner, "step", 8)):
        with monkeypatch.context() as patch:
            taken = _stop_after(patch, owner, method, after)
            with pytest.raises(KeyboardInterrupt):
                _run(0, tmp_path)
        assert len(taken) == after
    with monkeypatch.context() as patch:
        patch.setattr(learner, "train_step", _never)
        taken = _stop_after(patch, tuner, "step", 100)
        assert _run(0, tmp_path) == values
    assert len(taken) == CONFIG.total_steps - 5


def _stop_after(patch: pytest.MonkeyPatch, owner: Any, method: str, after: int) -> list[int]:
    """Interrupt a training in the step that would be one too many; list the steps taken."""
    original, taken = getattr(owner, method), []

    def step(self: Any) -> float:
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(1)
        return original(self)

    patch.setattr(owner, method, step)
    return taken


def _never(self: Any) -> float:
    raise AssertionError(self)


def test_the_presentation_pairs_texts_and_seeds(values: dict[str, Any]) -> None:
    rows = (_row(0, values), _row(1, values))
    shown = present(Result("second", "default", "", rows), {}, what="keywords", note="a note")
    assert len(shown.claims) == 5  # two rivals on two links, AdaLoRA on one
    for claim in shown.claims:
        assert claim.interval is not None
        assert claim.interval[0] <= float(claim.ours.split()[0]) + 0.01
        assert claim.interval[1] >= float(claim.ours.split()[0]) - 0.01
        assert claim.seeds == (0, 1)
    assert [line[0] for line in shown.tables[1].rows] == ["tiny-0", "tiny-1"]


def test_nothing_is_shown_of_nothing() -> None:
    assert present(Result("second", "default", "", ()), {}, what="keywords", note="").claims == ()


def test_equal_bits_keep_an_empty_plan_empty() -> None:
    world = synthetic_world(0, config=WorldConfig(deadline="enforce"))
    plans = np.zeros((5, world.problem.layout.n_projections), dtype=np.int64)
    plans[4] = 2
    uniform = equal_bits_uniform(world, plans)
    assert not uniform[:4].any()
    np.testing.assert_array_equal(uniform[4], plans[4])


def test_without_data_a_job_says_how_to_name_them(tmp_path: Path) -> None:
    study = Pipeline(LiveTask("x", "x", 0, 4, CONFIG), SETTINGS, "facebook/opt-1.3b")
    context = RunContext(tmp_path, "quick", {}, {}, None)
    with pytest.raises(DataError, match="--data"):
        study.run(study.jobs("quick")[0], context)
    assert {job.settings["model"] for job in study.jobs("paper")} == {"facebook/opt-1.3b"}


def test_the_decoder_is_built_once_and_can_be_adapted(tmp_path: Path) -> None:
    texts, shared = keyword_splits().train.texts, tmp_path / "decoder"
    made = shared_decoder(shared, texts, DECODER, tmp_path / "a.pt")
    weights = (made / "model.safetensors").read_bytes()
    assert shared_decoder(shared, texts, replace(DECODER, seed=1), tmp_path / "b.pt") == made
    assert (made / "model.safetensors").read_bytes() == weights
    config = replace(CONFIG, model=str(made), total_steps=4)
    learner = pipeline.TransformerLearner(config, keyword_splits())
    assert [p.kind for p in learner.layout.projections] == ["q", "k", "v", "o", "fc1", "fc2"]
    assert np.isfinite(learner.train_step())


def test_the_second_to_finish_keeps_the_decoder_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, shared = keyword_splits().train.texts, tmp_path / "decoder"
    pretrain = shared_decoder.__globals__["pretrain"]

    def overtaken(*arguments: Any) -> Any:
        made = pretrain(*arguments)
        shared.mkdir()
        (shared / "config.json").write_text("of the other job")
        return made

    monkeypatch.setattr("studies.second_model.small_decoder.pretrain", overtaken)
    shared_decoder(shared, texts, DECODER, tmp_path / "a.pt")
    assert (shared / "config.json").read_text() == "of the other job"
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


def test_pretraining_continues_bit_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = keyword_splits().train.texts
    whole = shared_decoder(tmp_path / "whole", texts, DECODER, tmp_path / "whole.pt")
    module = shared_decoder.__globals__
    windows, seen = module["_windows"], []

    def interrupted(tokens: Any, config: DecoderConfig, step: int) -> Any:
        seen.append(step)
        if step == 2 and seen.count(2) == 1:
            raise KeyboardInterrupt
        return windows(tokens, config, step)

    monkeypatch.setattr("studies.second_model.small_decoder._windows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shared_decoder(tmp_path / "parts", texts, DECODER, tmp_path / "parts.pt")
    parts = shared_decoder(tmp_path / "parts", texts, DECODER, tmp_path / "parts.pt")
    assert seen == [0, 1, 2, 2, 3]
    assert _weights(parts).equal(_weights(whole))


def _weights(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return torch.cat(
        [w.ravel() for _, w in sorted(load_file(folder / "model.safetensors").items())]
    )


def test_too_few_texts_to_pretrain_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes 8 tokens"):
        shared_decoder(tmp_path / "decoder", ("a",), DECODER, tmp_path / "a.pt")
