"""Accuracy against bytes, from the best adapter of any rank down to a single packet.

Kinds of jobs: `tuning` searches the learning rate of a method, `tuning_ours` measures some of ours;
`method` trains a method and sends it in the codes of peers; `pack` sends what such a job has
trained in files of ours; `float32` says whether quick judging changes an answer; `ours` makes a
file of at most so many bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import torch

from rankcast.errors import CodecError
from studies.byte_frontier.adapters import Trained
from studies.byte_frontier.codes import (
    DENSITIES,
    NNC,
    SOME,
    Coded,
    compeft_codes,
    half_precision,
    lora_codes,
    nnc_codes,
    pack_codes,
    reference,
    simple_codes,
)
from studies.byte_frontier.judging import AGAIN, Weights, fast_type
from studies.byte_frontier.methods import METHODS, OTHERS, Settings
from studies.byte_frontier.ours import (
    CHOSEN,
    FEW_PACKETS,
    FLOAT32,
    ONE_PACKET,
    TRIED,
    WAYS,
    Request,
    trained_in_float32,
)
from studies.byte_frontier.presentation import present
from studies.byte_frontier.runs import (
    Setup,
    chosen_settings,
    common_folder,
    run_tuning,
    tuning_score,
)
from studies.byte_frontier.tuning import SEED, short_name, steps_of, training_settings, tuning_job
from studies.harness.spec import Job, RunContext, Scale, Study
from studies.shared.judging import pack_groups
from studies.shared.nnc import nnc_python
from studies.shared.tasks import TASKS

SST2, AGNEWS = "sst2-frontier", "agnews-frontier"
FIRST_SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
ADAPTER_FOLDER = "adapter"
SOME_DENSITIES = (0.2,)
FURTHEST = (("lora", "4"), ("lora", "8"))
"""Methods and sizes that are sent in some codes only."""
QUICK = {"steps": 4, "lrs": (1e-3, 2e-3)}


def jobs(scale: Scale) -> Sequence[Job]:
    """Return the jobs of both tasks: LoRA and ours first, smaller sizes of other methods last."""
    if scale == "quick":
        return list(_quick())
    first = [(m, next(iter(METHODS[m].sizes))) for m in OTHERS]
    second = [(m, size) for m in OTHERS for size in list(METHODS[m].sizes)[1:]]
    every = [job for task in (SST2, AGNEWS) for job in _lora_and_ours(task)]
    for group, task in product((first, second), (SST2, AGNEWS)):
        every += _compared(task, group)
    return every


def _lora_and_ours(task: str) -> Iterator[Job]:
    """Yield the jobs of LoRA at all ranks, of our files, and of LoRA that trains for longer."""
    ranks = [("lora", size) for size in METHODS["lora"].sizes]
    long = [("lora_long", size) for size in METHODS["lora_long"].sizes]
    yield from _compared(task, ranks)
    if task == SST2:
        for rank in (ranks[0], ranks[-1]):
            yield _after(_method(task, *rank, 0, _codes_of(*rank)), "float32")
    yield _tuning_ours(task)
    for way, seed in product(WAYS, (*FIRST_SEEDS, *MORE_SEEDS)):
        yield from (_ours(task, way, sizes, seed) for sizes in WAYS[way].sizes)
    for seed, (method, size) in product(MORE_SEEDS, ranks):
        yield from _sent(task, method, size, seed, "all" if size == "1" else "reference")
    yield from (_tuning(task, method, size) for method, size in long)
    for seed, (method, size) in product((*FIRST_SEEDS, *MORE_SEEDS), long):
        yield from _sent(task, method, size, seed, "reference")
    for way, seed in product(WAYS, FIRST_SEEDS if task == SST2 else ()):
        yield from (_ours(task, way, sizes, seed) for sizes in WAYS[way].more_sizes)


def _compared(task: str, group: Sequence[tuple[str, str]]) -> Iterator[Job]:
    """Yield the jobs that tune methods at some sizes, and those of their results."""
    yield from (_tuning(task, method, size) for method, size in group)
    for seed, (method, size) in product(FIRST_SEEDS, group):
        yield from _sent(task, method, size, seed, _codes_of(method, size))


def _codes_of(method: str, size: str) -> str:
    """Return in which codes the first seeds of a method are sent."""
    return "some" if (method, size) in FURTHEST else "all"


def _sent(task: str, method: str, size: str, seed: int, codes: str) -> Iterator[Job]:
    """Yield the job that trains a method, and the one that packs what it has trained."""
    job = _method(task, method, size, seed, codes)
    yield job
    if codes != "reference":
        yield _after(job, "pack")


def _quick() -> Iterator[Job]:
    """Yield a job of tuning and one for each of two methods, with hardly a step."""
    steps, lrs = QUICK["steps"], QUICK["lrs"]
    yield tuning_job(AGNEWS, "lora", "1", steps, lrs)
    job = _method(AGNEWS, "lora", "1", 0, "few", steps=steps, lrs=lrs)
    yield from (job, _after(job, "pack"), _after(job, "float32"))
    yield _method(AGNEWS, "ia3", "k-v-fc2", 0, "few", steps=steps, lrs=lrs)
    yield _tuning_ours(AGNEWS, steps)
    yield _ours(AGNEWS, "stream", (ONE_PACKET, FEW_PACKETS), 0, 2 * steps)


def _tuning(task: str, method: str, size: str) -> Job:
    return tuning_job(task, method, size, steps_of(task, method))


def _method(
    task: str,
    method: str,
    size: str,
    seed: int,
    codes: str = "all",
    *,
    steps: int | None = None,
    lrs: Sequence[float] = (),
) -> Job:
    """Return the job that trains a method and sends it.

    Args:
        task: name of the task.
        method: name in `METHODS`.
        size: name of one of its sizes.
        seed: of the training.
        codes: `all`, `some`, `reference` for float32 alone, or `few` to see that it runs.
        steps: of the training; those of the task and the method for None.
        lrs: for tuning; see `tuning_job`.
    """
    n_steps = steps or steps_of(task, method)
    settings = {
        **training_settings("method", task, method, size, n_steps),
        "tuning": tuning_job(task, method, size, n_steps, lrs).name,
        "codes": codes,
    }
    return Job(f"{short_name(task)}-{method}-{size}-{seed}", seed, settings)


def _after(of: Job, kind: str) -> Job:
    """Return a job on what another job has trained, or would have."""
    return Job(f"{of.name}-{kind}", of.seed, {**of.settings, "kind": kind, "of": of.name})


def _ours(task: str, way: str, sizes: Sequence[int], seed: int, steps: int | None = None) -> Job:
    """Return the job that makes a file of ours; `steps` None for those of the way."""
    settings = {
        "kind": "ours",
        "task": task,
        "setup": TASKS[task].to_plain(),
        "way": way,
        "sizes": list(sizes),
        "teachers": WAYS[way].teachers,
        "settings": dict(CHOSEN[task]),
        "steps": steps or TASKS[task].finetune.total_steps * WAYS[way].times_steps,
    }
    return Job(f"{short_name(task)}-{way}-{sizes[-1]}-{seed}", seed, settings)


def _tuning_ours(task: str, steps: int | None = None) -> Job:
    """Return the job that measures settings of ours; `steps` None for those of every method."""
    settings = {
        "kind": "tuning_ours",
        "task": task,
        "setup": TASKS[task].to_plain(),
        "tried": [dict(settings) for settings in TRIED[task]],
        "steps": steps or TASKS[task].finetune.total_steps,
    }
    return Job(f"tune-{short_name(task)}-ours-1", SEED, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Do one job; see the head of this file."""
    runs = {
        "tuning": _run_tuning,
        "method": _run_method,
        "pack": _run_pack,
        "float32": _run_float32,
        "ours": _run_ours,
        "tuning_ours": _run_tuning_ours,
    }
    return runs[job.settings["kind"]](job, context)


def _run_tuning(job: Job, context: RunContext) -> Mapping[str, Any]:
    return {"candidates": run_tuning(job, context)}


def _run_method(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train with the settings that won, send in the codes of peers, judge what decodes."""
    s, setup = job.settings, Setup.of(job, context)
    settings = _settings(job, context)
    folder = _adapter_folder(job, context)
    adapter = setup.trained(settings, folder)
    codes = _peers(setup, adapter, settings, folder, s["codes"])
    if s["codes"] in ("reference", "few"):
        codes = islice(codes, 1 if s["codes"] == "reference" else 3)
    elif job.seed == 0:
        codes = chain([half_precision(adapter)], codes)
    missing = [NNC] if s["codes"] in ("all", "some") and nnc_python() is None else []
    numbers = {
        "n_numbers": adapter.n_numbers,
        "head_numbers": adapter.head.contrasts.size,
        "computed_in": str(fast_type()).removeprefix("torch."),
    }
    judged = _judge_all(setup, codes, context)
    groups = TASKS[s["task"]].groups(context.data)[: len(setup.texts.judged)]
    return {
        "settings": settings,
        **numbers,
        "groups": pack_groups(groups),  # of the judged texts, for the intervals of all rows
        "codes": judged,
        "missing": missing,
    }


def _run_pack(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Pack what another job has trained, and judge what decodes."""
    setup = Setup.of(job, context)
    codes = pack_codes(_trained_before(job, setup, context), setup.judge.base)
    if job.settings["codes"] == "few":
        codes = islice(codes, 1)
    return {"codes": _judge_all(setup, codes, context)}


def _run_float32(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Count the answers that are others when every text is answered in float32.

    On a processor that answers in float32 anyway there is nothing to count.
    """
    if fast_type() is torch.float32:
        return {"codes": [], "n_texts": 0, "changed": 0, "in_bfloat16": 0}
    setup = Setup.of(job, context)
    adapter, tokens = _trained_before(job, setup, context), setup.texts.judged
    weights = adapter.weights(adapter.strips, adapter.head)
    exact, quick, low = (
        setup.judge.logits(tokens, weights, again).argmax(1) for again in (1.0, AGAIN, 0.0)
    )
    changed = {"changed": int((quick != exact).sum()), "in_bfloat16": int((low != exact).sum())}
    return {"codes": [], "n_texts": len(tokens), **changed}


def _trained_before(job: Job, setup: Setup, context: RunContext) -> Trained:
    """Return what another job has trained, or would have."""
    return setup.trained(_settings(job, context), _adapter_folder(job, context))


def _adapter_folder(job: Job, context: RunContext) -> Path:
    """Return where the adapter is that a job needs, whichever job has trained it."""
    settings = {key: value for key, value in job.settings.items() if key not in ("kind", "of")}
    name = job.settings.get("of", job.name)
    return common_folder("trained", name, settings, context) / ADAPTER_FOLDER


def _settings(job: Job, context: RunContext) -> Settings:
    """Return the settings that won for a job's method and size."""
    s, lrs = job.settings, QUICK["lrs"] if context.scale == "quick" else ()
    tuning = tuning_job(s["task"], s["method"], s["size"], s["steps"], lrs)
    return chosen_settings(tuning, context)


def _peers(
    setup: Setup, adapter: Trained, settings: Settings, folder: Path, wanted: str
) -> Iterator[Coded]:
    """Yield an adapter in the codes of peers: all of them, or some."""
    if wanted != "some":
        yield from _every_peer(setup, adapter, settings, folder, DENSITIES)
        return
    codes = _every_peer(setup, adapter, settings, folder, SOME_DENSITIES)
    yield from (coded for coded in codes if coded.code in SOME)


def _every_peer(
    setup: Setup,
    adapter: Trained,
    settings: Settings,
    folder: Path,
    densities: Sequence[float],
) -> Iterator[Coded]:
    """Yield an adapter in every code of peers."""
    base = setup.judge.base
    yield reference(adapter)
    yield from simple_codes(adapter)
    if setup.method != "lora":
        return
    yield from lora_codes(adapter, base, above_one=setup.size != "1")
    training = setup.compeft_training(settings, folder, densities)
    yield from compeft_codes(adapter, base, training)
    yield from nnc_codes(adapter)


def _run_ours(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Make a file of ours and judge what decodes of it, and of its beginnings.

    Raises:
        CodecError: one has more bytes than were asked for.
    """
    s, setup = job.settings, Setup.of(job, context)
    splits, base = TASKS[s["task"]].splits(context.data), setup.judge.base
    sizes, teachers = tuple(s["sizes"]), s["teachers"]
    made_from = setup.config, splits, base, sizes, teachers, s["settings"], context.scratch
    request = Request(*made_from)
    codes = []
    for size, made in zip(s["sizes"], WAYS[s["way"]].make(request), strict=True):
        if len(made.data) > size:
            raise CodecError(f"{job.name} made {len(made.data)} bytes where {size} were asked for.")
        code = {"code": f"{size:,} bytes", "family": s["way"], "bytes": float(len(made.data))}
        codes.append({**code, **made.more, **_judged(setup, made.weights, context)})
    return {"codes": codes, "computed_in": str(fast_type()).removeprefix("torch.")}


def _run_tuning_ours(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Train in float32 with each of some settings, and measure on the texts for tuning."""
    s, setup = job.settings, Setup.of(job, context)
    splits, base, candidates = TASKS[s["task"]].splits(context.data), setup.judge.base, []
    for i, settings in enumerate(s["tried"]):
        scratch = context.scratch / str(i)
        scratch.mkdir(exist_ok=True)
        request = Request(setup.config, splits, base, (FLOAT32,), 0, settings, scratch)
        (made,) = trained_in_float32(request)
        candidates.append({**settings, **tuning_score(setup, made.weights)})
    return {"candidates": candidates}


def _judge_all(
    setup: Setup, codes: Iterable[Coded], context: RunContext
) -> list[Mapping[str, Any]]:
    """Return what a row keeps of each code."""
    return [
        {
            "code": coded.code,
            "family": coded.family,
            "bytes": round(coded.n_bytes, 1),
            **coded.more,
            **_judged(setup, coded.weights, context),
        }
        for coded in codes
    ]


def _judged(setup: Setup, weights: Weights, context: RunContext) -> Mapping[str, Any]:
    return setup.judge.judge_once(setup.texts.judged, weights, context.scratch / "judged")


STUDY = Study(
    name="byte_frontier",
    title="The byte frontier",
    question="In how few bytes does a device reach the accuracy of the best adapter of any rank?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
