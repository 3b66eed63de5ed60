"""Train one adapter for a mixture of domains, measure it, plan with it, and judge the plans.

What is chosen is chosen by the texts to measure on; all losses that are kept are of other texts.

Shapes: `D` domains, `n` judged texts of all domains together, `N` projections, `K` levels beside
nothing, `L` links, `P` plans: one for each domain, one for their mixture, and one by the energy of
the adapter's own weights.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.adapters.arrays import balanced_tensors_of
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.container import Container
from rankcast.codec.levels import Levels
from rankcast.codec.packing import Source
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.plain import from_plain
from rankcast.files import put_file, replace_file
from rankcast.learner.objectives import divergence_of
from rankcast.learner.texts import TextDataset
from rankcast.records import FloatArray
from studies.domains.answering import MergedModel, per_text
from studies.domains.gains import Gains, links, planned, problem_of, source_of, worth
from studies.domains.guessing import SHOWN, guesses
from studies.domains.mixture import (
    Mixture,
    MixtureLearner,
    MixtureSettings,
    config_of,
    mixture_of,
    train_to_end,
)
from studies.harness.spec import Job, RunContext
from studies.shared.judging import pack
from studies.shared.precision import fast_type

MEASURED = "measured"
"""The kind of these jobs among those of the study."""
N_BATCHES = 2000


@dataclass(frozen=True)
class MeasuredSettings:
    """All settings of a job.

    Attributes:
        mixture: texts and training.
        n_levels: K.
        snrs_db: of the links [dB].
        bandwidths_hz: of the links [Hz]; each is combined with each SNR.
        batch_sizes: texts of a batch whose domain is guessed.
    """

    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    n_levels: int = 3
    snrs_db: tuple[float, ...] = (-5.0, 5.0, 15.0)
    bandwidths_hz: tuple[float, ...] = (10e3, 40e3)
    batch_sizes: tuple[int, ...] = (1, 4, 16, 32)

    def to_plain(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return json.loads(json.dumps(asdict(self)))


QUICK = MeasuredSettings(
    MixtureSettings(
        domains=(
            "docstrings/asyncio+email",
            "docstrings/http+importlib",
            "docstrings/logging+unittest",
        ),
        model="tiny",
        rank=2,
        steps=4,
        batch_size=4,
        n_train=40,
        n_measured=8,
        n_judged=8,
    ),
    n_levels=2,
    bandwidths_hz=(5e3,),
)
"""Needs neither MiniLM nor data."""


def measured_job(seed: int, *, quick: bool = False) -> Job:
    """Return the job of a seed."""
    settings = QUICK if quick else MeasuredSettings()
    return Job(f"{MEASURED}-{seed}", seed, {"kind": MEASURED, "measured": settings.to_plain()})


@dataclass(frozen=True)
class _Trained:
    """An adapter that is trained, on a model that answers with versions of it."""

    mixture: Mixture
    model: MergedModel
    tensors: AdapterTensors
    source: Source
    problem: LevelProblem


def run_measured(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Do the job of one seed; training, measuring and judging go on where they were interrupted.

    Raises:
        DataError: a data set is not there.
    """
    torch.set_num_threads(1)
    settings = from_plain(MeasuredSettings, job.settings["measured"])
    trained = _trained(settings, job.seed, context)
    by_answers, by_labels = _gains(trained, settings, context.scratch / "gains")
    link = links(settings.snrs_db, settings.bandwidths_hz)
    budgets = trained.problem.link_costs.budget_bits(link)
    known = by_answers.expected
    tables = (*known, known.mean(axis=0), trained.problem.levels.gains)
    plans, files = [], []
    for bits in budgets.tolist():
        found = [planned(trained.source, trained.problem, table, bits) for table in tables]
        plans.append([plan for plan, _ in found])
        files.append([file for _, file in found])
    worths = np.array([[[worth(gains, p) for gains in known] for p in each] for each in plans])
    return {
        "computed_in": str(fast_type()).removeprefix("torch."),
        "domains": [name.partition("/")[0] for name in settings.mixture.domains],
        "budget_bytes": [int(bits // 8) for bits in budgets],
        "file_bytes": [[file.n_bits // 8 for file in each] for each in files],
        "plans": np.array(plans).tolist(),
        "gains": _short(by_answers.mean),
        "errors": _short(np.sqrt(by_answers.variance)),
        "shares": _short(by_answers.shares),
        "correlations": [_short(found) for found in by_answers.correlations()],
        "correlations_by_labels": [_short(found) for found in by_labels.correlations()],
        "worths": _short(worths),
        "texts": _texts(trained, settings, worths[:, : len(known) + 1]),
        **_answers(trained, files, context.scratch / "judged"),
    }


def _trained(settings: MeasuredSettings, seed: int, context: RunContext) -> _Trained:
    """Return the adapter of a seed, trained unless it was."""
    own = settings.mixture
    mixture = mixture_of(own, context.data)
    fast = fast_type()
    config = config_of(own, seed, in_bfloat16=fast is torch.bfloat16)
    learner = train_to_end(MixtureLearner(config, mixture), context.scratch / "checkpoint.pt")
    tensors = balanced_tensors_of(learner.adapter)
    source = source_of(tensors)
    levels = Levels.of(source, None, settings.n_levels)
    merged = MergedModel(config, mixture, tensors, fast)
    return _Trained(mixture, merged, tensors, source, problem_of(source, levels))


def _gains(trained: _Trained, settings: MeasuredSettings, kept: Path) -> tuple[Gains, Gains]:
    """Return gains by divergence from the answers of the whole adapter, and by the true classes.

    All other projections are at the plan of most energy for a link between the worst and the best.
    """
    kept.mkdir(parents=True, exist_ok=True)
    levels, n = trained.problem.levels, len(trained.tensors.factors)
    budgets = trained.problem.link_costs.budget_bits(
        links(settings.snrs_db, settings.bandwidths_hz)
    )
    middle = trained.problem.plans_within(np.array([np.exp(np.log(budgets).mean())]))[0]
    left = [i for i in range(n) if not (kept / f"{i}.npy").is_file()]
    if left:
        tokens = trained.model.tokens(trained.mixture.splits.validation)
        wanted = trained.model.answers(tokens, trained.tensors)
        asked = trained.model.each_level(tokens, trained.tensors, levels, middle, left)
        for i, logits in asked:
            table = [
                [divergence_of(one, wanted).double().numpy(), per_text(one, tokens).loss]
                for one in logits
            ]
            replace_file(kept / f"{i}.npy", partial(_save, np.array(table)))
    losses = np.array([np.load(kept / f"{i}.npy") for i in range(n)])  # (N, K + 1, 2, texts)
    gains = np.moveaxis(losses[:, :1] - losses, (2, 3), (0, 1))  # (2, texts, N, K + 1)
    each = gains.reshape(2, trained.mixture.n_domains, -1, *gains.shape[2:])
    return Gains(each[0]), Gains(each[1])


def _save(table: FloatArray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, table)


def _texts(trained: _Trained, settings: MeasuredSettings, worths: FloatArray) -> dict[str, Any]:
    """Return what batches of the judged texts give away, by what is shown and by their size."""
    splits = trained.mixture.splits
    known, asked = (_statistics(trained, part) for part in (splits.validation, splits.test))
    found = {
        f"{shown}-{size}": guesses(
            known[..., columns], asked[..., columns], worths, size, N_BATCHES
        )
        for shown, columns in SHOWN.items()
        for size in settings.batch_sizes
    }
    return {
        "means": _short(asked.mean(axis=1)),
        "deviations": _short(asked.std(axis=1)),
        "accuracy": {name: guess.accuracy for name, guess in found.items()},
        "chosen": {name: _short(guess.chosen) for name, guess in found.items()},
    }


def _statistics(trained: _Trained, texts: TextDataset) -> FloatArray:
    """Return (D, n, 2) lexical entropy and OOV rate of texts, as many of each domain."""
    stats = trained.model.tokens(texts).stats
    both = np.column_stack([stats.lexical_entropy, stats.oov_rate])
    return both.reshape(trained.mixture.n_domains, -1, 2)


def _answers(trained: _Trained, files: Sequence[Sequence[Container]], kept: Path) -> dict[str, Any]:
    """Return how the judged texts are answered: without an adapter, with all of it, with files."""
    kept.mkdir(parents=True, exist_ok=True)
    tokens = trained.model.tokens(trained.mixture.splits.test)

    def judged(name: str, tensors: AdapterTensors) -> dict[str, str]:
        file = kept / f"{name}.json"
        if not file.is_file():
            found = trained.model.judge(tokens, tensors)
            plain = {"loss": pack_losses(found.loss), "correct": pack(found.correct)}
            put_file(file, json.dumps(plain).encode())
        return json.loads(file.read_text("utf-8"))

    nothing = trained.tensors.truncated(np.zeros(len(trained.tensors.factors), dtype=np.int64))
    return {
        "n_texts": len(tokens),
        "nothing": judged("nothing", nothing),
        "whole": judged("whole", trained.tensors),
        "answers": [[judged(_name_of(file), file.tensors()) for file in each] for each in files],
    }


def _name_of(file: Container) -> str:
    """Return a name that files of other bytes do not have; many links get the same file."""
    return hashlib.sha256(file.to_bytes()).hexdigest()[:24]


def pack_losses(losses: FloatArray) -> str:
    """Return (n,) losses as text, two bytes each: 11 bits of each number."""
    return base64.b64encode(losses.astype("<f2").tobytes()).decode("ascii")


def unpack_losses(packed: str) -> FloatArray:
    """Return (n,) losses of what `pack_losses` packed."""
    return np.frombuffer(base64.b64decode(packed), dtype="<f2").astype(np.float64)


def _short(values: FloatArray) -> Any:
    """Return numbers of four digits as JSON values; None for NaN."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(v) for v in value]
        return float(f"{value:.4g}") if np.isfinite(value) else None

    return plain(np.asarray(values).tolist())
