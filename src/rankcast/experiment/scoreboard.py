"""The scoreboard: every claim with the paper's number, ours, its interval and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankcast.experiment.catalogue import Catalogue
from rankcast.experiment.spec import Claim, Experiment, Presentation, Result
from rankcast.experiment.store import Store, plain


@dataclass(frozen=True, slots=True)
class Presented:
    """An experiment with its result and what a reader sees of it."""

    experiment: Experiment
    result: Result
    presentation: Presentation


def present_all(
    catalogue: Catalogue, experiments: Sequence[Experiment], store: Store
) -> tuple[Presented, ...]:
    """Present experiments from the rows that there are.

    Raises:
        ConfigError: a result that cannot be read.
    """
    needed = {name for e in experiments for name in (*e.needs, *e.beside)}
    known = {e.name: e for e in experiments}
    known |= {name: catalogue.load(name) for name in sorted(needed - set(known))}
    results = {name: store.collect(experiment) for name, experiment in known.items()}
    return tuple(present(experiment, results) for experiment in experiments)


def present(experiment: Experiment, results: dict[str, Result]) -> Presented:
    """Present one experiment; one that has not run yet says so."""
    result = results[experiment.name]
    if result.missing and not result.rows:
        return Presented(experiment, result, _not_run(experiment, result.command))
    try:
        inputs = {name: results[name] for name in (*experiment.needs, *experiment.beside)}
        shown = experiment.present(result, inputs)
    except Exception as error:
        error.add_note(f"while presenting {experiment.name}")
        raise
    empty = inputs and not any(found.rows for found in (result, *inputs.values()))
    if empty and not (shown.claims or shown.tables):  # it shows others' rows, and there are none
        shown = _not_run(experiment, result.command)
    return Presented(experiment, result, _provisional(shown, (result, *inputs.values())))


def _provisional(shown: Presentation, results: Sequence[Result]) -> Presentation:
    """Say on every measured claim that rows it may rest on are still missing."""
    partly = [f"{r.experiment} lacks {len(r.missing)}" for r in results if r.missing and r.rows]
    if not partly:
        return shown
    words = f"Provisional: {', '.join(partly)} rows."
    return replace(
        shown,
        claims=tuple(
            replace(claim, note=f"{words} {claim.note}".strip()) if claim.interval else claim
            for claim in shown.claims
        ),
    )


def _not_run(experiment: Experiment, command: str) -> Presentation:
    note = f"No job has run yet: {command}."
    claim = Claim(experiment.question, "", "", None, "not run", (), note)
    return Presentation((claim,), text=note)


def scoreboard(presented: Sequence[Presented]) -> list[dict[str, Any]]:
    """Return every claim as a plain dictionary, for `rankcast experiment report --json`."""
    return [
        {
            "experiment": one.experiment.name,
            "source": one.experiment.source,
            "claim": claim.claim,
            "paper": claim.paper,
            "ours": claim.ours,
            "interval": plain(claim.interval),
            "verdict": claim.verdict,
            "seeds": plain(claim.seeds),
            "command": one.result.command,
            "note": claim.note,
        }
        for one in presented
        for claim in one.presentation.claims
    ]
