"""The scoreboard: every claim with the paper's number, ours, its interval and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from studies.harness.catalogue import Catalogue
from studies.harness.spec import Claim, Presentation, Result, Study
from studies.harness.store import Store, plain


@dataclass(frozen=True, slots=True)
class Presented:
    """A study with its result and what a reader sees of it."""

    study: Study
    result: Result
    presentation: Presentation


def present_all(
    catalogue: Catalogue, studies: Sequence[Study], store: Store
) -> tuple[Presented, ...]:
    """Present studies from the rows that there are.

    Raises:
        ConfigError: a result that cannot be read.
    """
    needed = {name for s in studies for name in s.inputs}
    known = {s.name: s for s in studies}
    known |= {name: catalogue.load(name) for name in sorted(needed - set(known))}
    results = {name: store.collect(study) for name, study in known.items()}
    return tuple(present(study, results) for study in studies)


def present(study: Study, results: dict[str, Result]) -> Presented:
    """Present one study; one that has not run yet says so."""
    result = results[study.name]
    if result.missing and not result.rows:
        return Presented(study, result, _not_run(study, result.command))
    try:
        inputs = {name: results[name] for name in study.inputs}
        shown = study.present(result, inputs)
    except Exception as error:
        error.add_note(f"while presenting {study.name}")
        raise
    empty = inputs and not any(one.rows for one in (result, *inputs.values()))
    if empty and not (shown.claims or shown.tables):  # it shows others' rows, and there are none
        shown = _not_run(study, result.command)
    return Presented(study, result, _provisional(shown, (result, *inputs.values())))


def _provisional(shown: Presentation, results: Sequence[Result]) -> Presentation:
    """Say on every measured claim that rows it may rest on are still missing."""
    partly = [f"{r.study} lacks {len(r.missing)}" for r in results if r.missing and r.rows]
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


def _not_run(study: Study, command: str) -> Presentation:
    note = f"No job has run yet: {command}."
    claim = Claim(study.question, "", "", None, "not run", (), note)
    return Presentation((claim,), text=note)


def scoreboard(presented: Sequence[Presented]) -> list[dict[str, Any]]:
    """Return every claim as a plain dictionary, for `python3 dev.py study report --json`."""
    return [
        {
            "study": one.study.name,
            "source": one.study.source,
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
