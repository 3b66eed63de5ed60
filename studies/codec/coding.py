"""Train an adapter, code it in every way that is compared, and judge what decodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankcast.adapters.arrays import load_tensors, tensors_of
from rankcast.adapters.projections import find_projections
from rankcast.codec.container import pack_at_exponent
from rankcast.codec.formats.peft import read_peft
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Coding, Source
from rankcast.codec.planner import pack_within
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.config.learner import FinetuneConfig
from rankcast.files import replace_file
from rankcast.learner.base_models import load_model
from rankcast.learner.objectives import SequenceClassification
from rankcast.learner.qat import QatConfig, learner_for, prepare_qat
from rankcast.learner.texts import DatasetSplits
from rankcast.learner.transformer import TransformerLearner
from rankcast.training.folder import load_state
from studies.baselines.adalora import (
    AdaLoraFinetuner,
    AdaLoraSchedule,
    LoraFinetuner,
    PeftFinetuner,
)
from studies.baselines.canonical import balance
from studies.baselines.compression import (
    COMPEFT_GAINS,
    Coded,
    compeft,
    loraquant,
    round_numbers,
)
from studies.shared.judging import judgement
from studies.shared.tasks import full_ranks, train_to_end

Way = Literal["nested", "lora", "adalora"]
DENSITIES = (0.05, 0.2)
SHARES = (0.5, 0.9)
COMPEFT_TEXTS = 500


def train_adapter(
    way: Way, config: FinetuneConfig, splits: DatasetSplits, scratch: Path
) -> AdapterTensors:
    """Return a trained adapter: nested in SVD form, or PEFT's LoRA or AdaLoRA at rank r_max."""
    if way == "nested":
        learner = TransformerLearner(config, splits)
        full = full_ranks(learner)
        train_to_end(learner, full, scratch / "nested.pt")
        learner.apply(full[None])
        balance(learner.adapter)
        return tensors_of(learner.adapter)
    tuner = _tuner(way, config, splits)
    tuner.train(checkpoint=scratch / f"{way}.pt")
    tuner.model.save_pretrained(scratch / way)
    return read_peft(scratch / way)[0]


def trained_factors(
    way: Way, config: FinetuneConfig, splits: DatasetSplits, scratch: Path
) -> tuple[AdapterTensors, AdapterTensors]:
    """Return the factors before and after training as training has them: P·s·Λ and Q, or B·s and A.

    Modules are those of the trained adapter in both.

    Args:
        way: nested or lora.
        config: of the training.
        splits: its texts.
        scratch: of the job that has trained the adapter, or will find its checkpoint here.
    """
    after = train_adapter(way, config, splits, scratch)
    if way == "nested":
        learner = TransformerLearner(config, splits)
        before = _factors_of(learner)
        learner.load_state_dict(load_state(scratch / "nested.pt")["learner"])
        pair = before, _factors_of(learner)
    else:
        tuner = _tuner(way, config, splits)
        before = _lora_factors(tuner)
        tuner.load_state_dict(load_state(scratch / f"{way}.pt")["tuner"])
        pair = before, _lora_factors(tuner)
    first, last = (replace(after, factors=factors) for factors in pair)
    return first, last


def _factors_of(learner: TransformerLearner) -> tuple[Factors, ...]:
    adapter = learner.adapter
    parts = (adapter.components(i) for i in range(learner.layout.n_projections))
    return tuple(
        Factors((P * lam * adapter.scale).numpy().copy(), Q.numpy().copy()) for P, lam, Q in parts
    )


def _lora_factors(tuner: PeftFinetuner) -> tuple[Factors, ...]:
    """Return B·s and A of each projection, in the order of the layout."""
    factors = []
    for p in tuner.layout.projections:
        layer: Any = tuner.model.get_base_model().get_submodule(p.name)
        A, B = (getattr(layer, part)["default"].weight.detach() for part in ("lora_A", "lora_B"))
        scaled = (B * layer.scaling["default"]).numpy().copy()
        factors.append(Factors(scaled, A.numpy().copy()))
    return tuple(factors)


def tuned_compeft(
    learner: TransformerLearner, before: AdapterTensors, after: AdapterTensors, density: float
) -> tuple[Coded, float]:
    """Return ComPEFT's code with the α of its grid that has the least loss on probe texts."""
    losses = {}
    for gain in COMPEFT_GAINS:
        load_tensors(learner.adapter, compeft(after, density, gain, before).tensors)
        losses[gain] = learner.evaluate("validation", max_examples=COMPEFT_TEXTS).loss
    best = min(losses, key=lambda gain: losses[gain])
    return compeft(after, density, best, before), best


def _tuner(way: Way, config: FinetuneConfig, splits: DatasetSplits) -> PeftFinetuner:
    if way == "lora":
        return LoraFinetuner(config, splits)
    objective = SequenceClassification(splits.train.n_labels)
    n = find_projections(load_model(config.model, objective, config.seed).model).n_projections
    schedule = AdaLoraSchedule.derive(config.total_steps, n * config.r_max, n)
    return AdaLoraFinetuner(config, splits, schedule)


def trained_for_code(
    tensors: AdapterTensors,
    config: FinetuneConfig,
    splits: DatasetSplits,
    qat: QatConfig,
    *,
    coding: Coding,
    checkpoint: Path,
) -> AdapterTensors:
    """Return an adapter after quantization-aware training (QAT)."""
    learner, _ = prepare_qat(tensors, config, splits, qat, coding)
    train_to_end(learner, learner.adapter.ranks, checkpoint)
    return tensors_of(learner.adapter)


def trained_longer(
    tensors: AdapterTensors,
    config: FinetuneConfig,
    splits: DatasetSplits,
    qat: QatConfig,
    checkpoint: Path,
) -> AdapterTensors:
    """Return an adapter after as many ordinary steps as QAT has, at its learning rate."""
    learner = learner_for(tensors, replace(config, lr=qat.lr, total_steps=qat.steps), splits)
    train_to_end(learner, learner.adapter.ranks, checkpoint)
    balance(learner.adapter)
    return tensors_of(learner.adapter)


def energy_shares(tensors: AdapterTensors) -> list[float]:
    """Return (R,) mean share of ‖ΔW‖ that the strongest, second, … component of a projection has.

    Of components as they are coded, by the product of the norms of their factors.
    """
    rows = []
    for f in tensors.factors:
        sizes = np.linalg.norm(f.left, axis=0) * np.linalg.norm(f.right, axis=1)
        rows.append(np.sort(sizes)[::-1] / max(float(sizes.sum()), 1e-30))
    width = max(len(row) for row in rows)
    return np.mean([np.pad(row, (0, width - len(row))) for row in rows], axis=0).tolist()


def simple_codes(tensors: AdapterTensors) -> Iterator[tuple[str, float, AdapterTensors]]:
    """Yield name, bits and decoded adapter of the codes to compare with."""
    for kind in ("fp32", "fp16", "int8", "int4"):
        coded = round_numbers(tensors, kind)
        yield kind, coded.bits, coded.tensors
    for density in DENSITIES:
        coded = compeft(tensors, density)
        yield f"ComPEFT, {density:.0%}", coded.bits, coded.tensors
    for share in SHARES:
        coded = loraquant(tensors, share)
        yield f"LoRAQuant, {share:.0%}", coded.bits, coded.tensors


def our_code(tensors: AdapterTensors, coding: Coding) -> tuple[float, AdapterTensors]:
    """Return the bits of a whole file, header included, and what it decodes to.

    Args:
        tensors: balanced.
        coding: at which steps.
    """
    container = pack_at_exponent(_source(tensors, coding), coding.exponent)
    return float(container.n_bits), container.tensors()


def our_code_within(
    tensors: AdapterTensors, coding: Coding, budget_bits: float
) -> tuple[float, AdapterTensors]:
    """Return the bits of a whole file that fits a budget, and what it decodes to.

    Args:
        tensors: balanced.
        coding: how steps differ; how fine they are follows from the budget.
        budget_bits: of the whole file, header included.
    """
    container = pack_within(_source(tensors, coding), budget_bits)
    return float(container.n_bits), container.tensors()


def _source(tensors: AdapterTensors, coding: Coding) -> Source:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    digest = hashlib.sha256(name.encode()).hexdigest()  # as long as a fingerprint, as hard to pack
    return Source(tensors, BaseModel(name, digest), {"task_type": "SEQ_CLS"}, coding.offsets)


def judged_once(
    file: Path, learner: TransformerLearner, tensors: AdapterTensors
) -> Mapping[str, Any]:
    """Return how an adapter does on the judged texts, from a file if it was judged before."""
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    load_tensors(learner.adapter, tensors)
    loss, correct, _ = learner.judge_texts("test", None)
    judged = judgement(correct, float(loss.mean()))
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda partial: partial.write_text(json.dumps(judged), "utf-8"))
    return judged
