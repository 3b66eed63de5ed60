"""Which adapter is the most accurate of those that arrive within a second over 10 kHz?

Jobs of kind `ours` train one adapter for all links, let a policy learn what its levels are worth,
and judge what every chooser sends over each link. Jobs of kind `peer` train an adapter as its
authors do and judge, for each link, the code of least loss on the texts for tuning that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from studies.byte_frontier.codes import Coded
from studies.byte_frontier.methods import METHODS
from studies.byte_frontier.ours import CHOSEN, Request, train_for_sizes, weights_of
from studies.byte_frontier.runs import Setup, chosen_settings, tuning_score
from studies.byte_frontier.tuning import steps_of, training_settings, tuning_job
from studies.equal_bytes.peers import every_code
from studies.equal_bytes.plans import (
    BETWEEN_DB,
    LINKS_DB,
    budgets_bits,
    decoded,
    sent_over_links,
    trained_sizes,
)
from studies.equal_bytes.presentation import present
from studies.harness.spec import Job, RunContext, Scale, Study
from studies.shared.judging import pack_groups
from studies.shared.precision import fast_type
from studies.shared.scratch import common_folder
from studies.shared.tasks import TASKS

TASK = "sst2-frontier"
SEEDS = (0, 1, 2)
PEERS = (("lora", "1"), ("adalora", "1"), ("lora", "8"), ("adalora", "2"))
TIMES_STEPS, TEACHERS, TEACHER_SHARE = 6, 2, 1 / 3
EPISODES = 60
"""In which the policy learns, of 15 steps each."""
QUICK = {"steps": 60, "episodes": 2, "lrs": (1e-3, 2e-3)}
NOTHING = "nothing fits"


def jobs(scale: Scale) -> Sequence[Job]:
    """Return ours and the peers, seed by seed."""
    if scale == "quick":
        return [_ours(0, QUICK["steps"], QUICK["episodes"])]
    steps = TASKS[TASK].finetune.total_steps * TIMES_STEPS
    found = []
    for seed in SEEDS:
        found.append(_ours(seed, steps, EPISODES))
        found += [_peer(method, size, seed) for method, size in PEERS[:2]]
    return found + [_peer(method, size, seed) for method, size in PEERS[2:] for seed in SEEDS]


def _ours(seed: int, steps: int, episodes: int) -> Job:
    settings = {
        "kind": "ours",
        "task": TASK,
        "setup": TASKS[TASK].to_plain(),
        "sizes": list(trained_sizes()),
        "order": "downwards",
        "teachers": TEACHERS,
        "teacher_share": TEACHER_SHARE,
        "settings": dict(CHOSEN[TASK]),
        "steps": steps,
        "episodes": episodes,
    }
    return Job(f"ours-{seed}", seed, settings)


def _peer(method: str, size: str, seed: int) -> Job:
    steps = steps_of(TASK, method)
    settings = {
        **training_settings("peer", TASK, method, size, steps),
        "tuning": tuning_job(TASK, method, size, steps).name,
    }
    return Job(f"{method}-{size}-{seed}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Do one job; see the head of this file."""
    torch.set_num_threads(1)
    return (_run_ours if job.settings["kind"] == "ours" else _run_peer)(job, context)


def _run_ours(job: Job, context: RunContext) -> Mapping[str, Any]:
    s, setup = job.settings, Setup.of(job, context)
    splits, base = TASKS[TASK].splits(context.data), setup.judge.base
    target, *smaller = s["sizes"]
    made_from = setup.config, splits, base, (target,), s["teachers"], s["settings"]
    request = Request(*made_from, context.scratch, tuple(smaller), s["teacher_share"])
    trained = train_for_sizes(request)
    sent = []
    for choice in sent_over_links(trained, s["episodes"], job.seed):
        weights = weights_of(decoded(choice.file).tensors(), base)
        judged = setup.judge.judge_once(setup.texts.judged, weights, context.scratch / "judged")
        row = {"chooser": choice.chooser, "snr_db": choice.snr_db}
        sent.append({**row, "bytes": choice.file.n_bits // 8, **judged})
    files = [file.n_bits // 8 for file, _, _ in trained.files]
    return {"sent": sent, "files": files, **_about(context)}


def _run_peer(job: Job, context: RunContext) -> Mapping[str, Any]:
    s, setup = job.settings, Setup.of(job, context)
    tuning = tuning_job(TASK, s["method"], s["size"], s["steps"])
    settings = _settings_of(tuning, context)
    folder = common_folder("trained", job.name, s, context) / "adapter"
    adapter = setup.trained(settings, folder)
    compeft = None
    if METHODS[s["method"]].is_lora:
        compeft = lambda: setup.compeft_training(settings, folder, ())  # noqa: E731
    codes = [
        (coded, tuning_score(setup, coded.weights)["loss"])
        for coded in every_code(adapter, setup.judge.base, s["size"], compeft)
    ]
    reference, kept = codes[0][0], context.scratch / "judged"
    judged_reference = setup.judge.judge_once(setup.texts.judged, reference.weights, kept)
    sent = []
    for snr_db, budget in zip((*LINKS_DB, *BETWEEN_DB), budgets_bits(), strict=True):
        best = _best_within([c for c in codes if 8 * c[0].n_bytes <= budget])
        if best is None:
            judged = setup.judge.judge_once(setup.texts.judged, setup.judge.base, kept)
            sent.append({"code": NOTHING, "snr_db": snr_db, "bytes": 0, **judged})
            continue
        judged = setup.judge.judge_once(setup.texts.judged, best.weights, kept)
        sent.append({"code": best.code, "snr_db": snr_db, "bytes": best.n_bytes, **judged})
    return {
        "settings": settings, "sent": sent, "float32": judged_reference, **_about(context),
    }  # fmt: skip


def _best_within(codes: Sequence[tuple[Coded, float]]) -> Coded | None:
    """Return the code of least loss on the texts for tuning; None if there is none."""
    return min(codes, key=lambda pair: pair[1], default=(None, 0.0))[0]


def _settings_of(tuning: Job, context: RunContext) -> Mapping[str, Any]:
    """Return what won in a job of tuning of `byte_frontier`, whose rows this study reads."""
    folder = context.scratch.parent.parent.parent / "byte_frontier" / "scratch" / tuning.name
    return chosen_settings(tuning, replace(context, scratch=Path(folder)))


def _about(context: RunContext) -> Mapping[str, Any]:
    """Return how answers were computed, and which of the judged texts belong together."""
    groups = TASKS[TASK].groups(context.data)
    found = {"computed_in": str(fast_type()).removeprefix("torch.")}
    return found if context.scale == "quick" else {**found, "groups": pack_groups(groups)}


STUDY = Study(
    name="equal_bytes",
    title="Accuracy at equal bytes",
    question="Which adapter is the most accurate of those that arrive within a second over 10 kHz?",
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
    needs_data=True,
)
