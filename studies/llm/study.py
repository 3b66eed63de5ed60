"""Loss of answers against bytes: a language model on a device, and adapters that reach it.

Kinds of jobs: `tuning` measures a learning rate, `adapter` trains a LoRA and judges it in float32,
`rounded` and `published` send it in codes of peers, `pack`, `curved` and `larger` in ours: `larger`
is `curved` at the gain that suits each size. `qat` trains it on rounded weights, `teachers` and
`taught` train a file for a size, and `engine` lets llama.cpp answer on the quantised base.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from rankcast.codec.container import read_container
from rankcast.codec.packing import Source
from rankcast.codec.tensors import AdapterTensors
from rankcast.config.codec import CodecConfig
from rankcast.errors import ConfigError
from rankcast.files import only_one, put_file
from rankcast.learner.curvature import curvatures_of
from rankcast.learner.objectives import AdapterSnapshot
from rankcast.learner.qat import QatConfig
from rankcast.packaging.gain import GainSearch
from rankcast.packaging.texts import CURVATURE_TEXTS
from studies.harness.spec import Job, RunContext, Study
from studies.llm.base import VARIABLE, load_base
from studies.llm.codes import (
    NOTHING,
    QAT,
    REFERENCE,
    ROUNDED,
    SIZED,
    Coded,
    Training,
    curved_codes,
    missing_codes,
    of_file,
    pack_codes,
    published_codes,
    reference,
    rounded_codes,
)
from studies.llm.engine import engine_losses
from studies.llm.jobs import TAUGHT_SIZES, jobs, qat_job
from studies.llm.judging import AnswerJudge
from studies.llm.ours import (
    CHECKPOINT,
    learner_with,
    qat_file,
    sized_qat_file,
    taught_file,
    teachers_of,
)
from studies.llm.presentation import present
from studies.llm.runs import Setup, plan_of, run_tuning
from studies.llm.texts import pack_numbers
from studies.shared.precision import fast_type
from studies.shared.scratch import common_folder

COMPEFT_ANSWERS = 64
"""Answers on which ComPEFT's α is chosen."""


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Do one job; see the head of this file."""
    kind = job.settings["kind"]
    if kind == "tuning":
        return {"candidates": run_tuning(job, context)}
    runs: Mapping[str, Callable[[Setup], Mapping[str, Any]]] = {
        "adapter": _run_adapter,
        "rounded": lambda setup: _judged(setup, rounded_codes(setup.adapter)),
        "published": _run_published,
        "curved": _run_curved,
        "larger": _run_curved,
        "pack": lambda setup: _judged(setup, pack_codes(setup.adapter, setup.header)),
        "qat": _run_qat,
        "teachers": _run_teachers,
        "taught": _run_taught,
        "engine": _run_engine,
    }
    return runs[kind](Setup.of(job, context))


def _run_adapter(setup: Setup) -> Mapping[str, Any]:
    """Train, and judge the base alone and the adapter in float32."""
    adapter = setup.adapter
    judge = setup.judge()
    kept = setup.context.scratch / "judged"
    none = {"code": NOTHING, "family": NOTHING, "bytes": 0.0, **judge.judge_once(None, None, kept)}
    coded = reference(adapter)
    exact = {"code": REFERENCE, "family": ROUNDED, "bytes": coded.n_bytes}
    return {
        **_texts(setup, judge),
        "groups": pack_numbers(setup.texts.groups),
        "lr": setup.lr,
        "n_numbers": adapter.n_params,
        "codes": [none, {**exact, **judge.judge_once(adapter, None, kept)}],
    }


def _texts(setup: Setup, judge: AnswerJudge) -> dict[str, Any]:
    """Return what says on which texts and model a row was measured."""
    return {
        "texts": setup.texts.digest,
        "base": setup.base.digest,
        "counts": pack_numbers(judge.counts),
        "computed_in": str(fast_type()).removeprefix("torch."),
    }


def _judged(
    setup: Setup,
    codes: Iterable[Coded],
    missing: Iterable[str] = (),
) -> Mapping[str, Any]:
    """Return a row of codes, compared with the float32 adapter of the job's rank and seed."""
    judge, kept, rows = setup.judge(), setup.context.scratch / "judged", []
    states = judge.states(setup.adapter)
    for coded in codes:
        found = judge.judge_once(coded.tensors, states, kept)
        told = {"code": coded.code, "family": coded.family, "bytes": round(coded.n_bytes, 1)}
        rows.append({**told, **coded.more, **found})
    return {**_texts(setup, judge), "codes": rows, "missing": list(missing)}


def _run_published(setup: Setup) -> Mapping[str, Any]:
    """Send an adapter in codes that others have published."""
    codes = _published(setup)
    gc.collect()  # of the model that has chosen ComPEFT's α
    return _judged(setup, codes, missing=missing_codes())


def _published(setup: Setup) -> list[Coded]:
    """Return an adapter in codes that others have published."""
    judge = setup.judge("validation", COMPEFT_ANSWERS)

    def loss(tensors: AdapterTensors) -> float:
        return judge.judge(tensors).mean_loss

    scale = setup.job.settings["scale"]
    training = Training(setup.before_folder, setup.adapter_folder, scale, loss)
    return list(published_codes(setup.adapter, training))


def _run_curved(setup: Setup) -> Mapping[str, Any]:
    """Send an adapter rounded by the curvature of the loss, of kind `larger` at its gain."""
    adapter = setup.adapter
    source = Source(adapter, setup.header, {"task_type": "CAUSAL_LM"})
    learner = learner_with(setup.ours(setup.lr), adapter)
    search = None
    if setup.job.settings["kind"] == "larger":
        search = GainSearch(learner, AdapterSnapshot(learner.adapter))
    codes = list(curved_codes(source, curvatures_of(learner, CURVATURE_TEXTS), search))
    del learner, search
    gc.collect()  # of the learner and the curvatures
    return _judged(setup, codes)


def _run_qat(setup: Setup) -> Mapping[str, Any]:
    """Train an adapter on rounded weights, for a size or for none."""
    coded = _after_qat(setup, setup.job.settings["size"])
    gc.collect()  # of the learner, before a judge loads its own model
    return _judged(setup, [coded])


def _after_qat(setup: Setup, size: int | None) -> Coded:
    """Return the file of an adapter that was trained on rounded weights, made by whoever is first.

    Args:
        setup: of the adapter.
        size: bytes that the file may have; None for any.
    """
    s, plan, seed = setup.job.settings, plan_of(setup.context), setup.job.seed
    made_by = qat_job(plan, s["task"], s["rank"], seed, size)
    folder = common_folder("qat", made_by.name, made_by.settings, setup.context)
    file, checkpoint = folder / "adapter.rcast", folder / CHECKPOINT
    with only_one(folder / "lock", f"doing {made_by.name}", wait=True):
        if not file.is_file():
            parts = setup.ours(setup.lr), setup.adapter
            if size is None:
                made = qat_file(*parts, QatConfig(steps=s["steps"]), checkpoint)
            else:
                made = sized_qat_file(*parts, size, s["steps"], checkpoint)
            put_file(file, made.to_bytes())
            checkpoint.unlink(missing_ok=True)
    name = "qat" if size is None else f"qat, {size:,} bytes"
    return of_file(name, QAT, read_container(file.read_bytes()))


def _codec(setup: Setup) -> CodecConfig:
    """Return how a file for a size trains, as `rankcast train` does by default."""
    return CodecConfig(setup.job.settings.get("size", TAUGHT_SIZES[0]))


def _teachers(setup: Setup) -> Any:
    """Return the file of teachers that serve every size of a task and seed."""
    s = setup.job.settings
    settings = {k: v for k, v in s.items() if k not in ("size", "kind")}
    name = f"{s['task']}-teachers-{setup.job.seed}"
    folder = common_folder("teachers", name, settings, setup.context)
    found = teachers_of(setup.ours(setup.lr), _codec(setup), s["steps"], folder / "teachers.pt")
    gc.collect()
    return found


def _run_teachers(setup: Setup) -> Mapping[str, Any]:
    """Train teachers, which are no files themselves."""
    _teachers(setup)
    return {"lr": setup.lr, "codes": []}


def _run_taught(setup: Setup) -> Mapping[str, Any]:
    """Train a file for a size with teachers, beside the LoRA of the teachers' rank."""
    s, teachers = setup.job.settings, _teachers(setup)
    checkpoint = setup.context.scratch / CHECKPOINT
    file = taught_file(setup.ours(setup.lr), _codec(setup), s["steps"], teachers, checkpoint)
    gc.collect()
    coded = of_file(f"{s['size']:,} bytes", SIZED, file)
    return _judged(setup, [coded])


def _run_engine(setup: Setup) -> Mapping[str, Any]:
    """Let llama.cpp answer the first texts on the quantised base.

    Raises:
        ConfigError: the base model is no GGUF.
    """
    s, gguf = setup.job.settings, setup.base.gguf
    if gguf is None:
        raise ConfigError(f"llama.cpp needs a GGUF, and there is none: set {VARIABLE}.")
    code = _named_code(setup, s["code"])
    gc.collect()
    few = setup.texts.first("test", s["n_answers"])
    model, tokenizer = load_base(setup.base.folder)
    n_words = model.get_input_embeddings().num_embeddings
    del model
    gc.collect()
    tokens = few.tokens("test", tokenizer, s["sizes"]["most_tokens"])
    tensors = None if code is None else code.tensors
    losses = engine_losses(gguf, tensors, tokens, n_words, setup.context.scratch / "engine")
    marks: Any = tokens.is_answer
    return {
        "texts": setup.texts.digest,
        "code": s["code"],
        "losses": pack_numbers(losses),
        "counts": pack_numbers(np.array([int(mark[1:].sum()) for mark in marks])),
        "codes": [],
    }


def _named_code(setup: Setup, name: str) -> Coded | None:
    """Return an adapter in a code; None for the base alone.

    Raises:
        ConfigError: no such code.
    """
    if name == NOTHING:
        return None
    if name == REFERENCE:
        return reference(setup.adapter)
    family, _, rest = name.partition(", ")
    if family == "pack":
        return next(iter(pack_codes(setup.adapter, setup.header, (float(rest),))))
    if family == "qat":
        return _after_qat(setup, int(rest.removesuffix(" bytes").replace(",", "")))
    raise ConfigError(f"The engine is asked for {name!r}, which is no code that it knows.")


STUDY = Study(
    name="llm",
    title="A language model on a device",
    question=(
        "In how few bytes does a language model on a device answer as well as with the float32 "
        "adapter?"
    ),
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
