"""The ladders of three measured adapters, from the committed results of two other studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankcast.band.ladder import Ladder

STUDIES = Path(__file__).parents[1]


def measured_ladders() -> dict[str, Ladder]:
    """Return the ladders of three adapters, from committed results.

    Bits and losses of the prefixes are those of `precision`; the loss of the same three models
    without an adapter is `calibration`'s, on other texts of the same task.
    """
    without = {row["job"]: row["values"]["rank_0_loss"] for row in _rows("calibration")}
    return {
        row["job"]: Ladder.of_losses(
            [p["bits"] for p in row["values"]["prefixes"]],
            [p["loss"] for p in row["values"]["prefixes"]],
            without[row["job"]],
        )
        for row in _rows("precision")
    }


def _rows(study: str) -> list[dict[str, Any]]:
    return json.loads((STUDIES / study / "result.json").read_text("utf-8"))["rows"]
