"""Make the table of adapters from result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "result.json"
_HEADS = ("packed as", "error", "merged", "error by default", "PEFT's file [B]", "ours [B]")
_LOST = 0.01
_TABLES = (("method of PEFT", True), ("variant", False))


def render() -> str:
    """Return the tables, PEFT's methods and variants of them, and the refusals."""
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    methods, variants = (_table(head, rows, of_peft=of) for head, of in _TABLES)
    lost = {row["name"] for row in rows if row["stock"] > _LOST}
    return (
        f"{methods}\n\n{variants}\n\n"
        f"PEFT itself does not load what it saved of: {'; '.join(sorted(lost))}.\n\n"
        f"What is said of those that are refused:\n\n{_refusals(rows)}"
    )


def _table(head: str, rows: list[dict[str, Any]], *, of_peft: bool) -> str:
    """Return a line for each kind: the largest error over its seeds, mean sizes."""
    names = dict.fromkeys(row["name"] for row in rows if row["method"] is of_peft)
    lines = [f"| {' | '.join((head, *_HEADS))} |", f"|---{'|---' * len(_HEADS)}|"]
    lines += [_line(name, [row for row in rows if row["name"] == name]) for name in names]
    return "\n".join(lines)


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    first, errors = rows[0], ("finest", "merged", "good")
    name, size = f"`{name}`" if first["method"] else name, _mean(rows, "saved_bytes")
    if first["outcome"] == "refused":
        return f"| {name} | refused | – | – | – | {size} | – |"
    shown = " | ".join(_largest(rows, key) for key in errors)
    return f"| {name} | {first['outcome']} | {shown} | {size} | {_mean(rows, 'good_bytes')} |"


def _largest(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    return "–" if None in values else f"{max(values):.1g}"


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    return f"{sum(row[key] for row in rows) / len(rows):,.0f}"


def _refusals(rows: list[dict[str, Any]]) -> str:
    refused = {row["name"]: row["refusal"] for row in rows if row["outcome"] == "refused"}
    return "\n".join(f"- {name}: “{words}”" for name, words in refused.items())
