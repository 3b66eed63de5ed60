"""Compare a trained run, and leave table and pictures in its folder."""

from __future__ import annotations

from pathlib import Path

from rankcast.run.compare import Comparison, compare
from rankcast.run.folder import RunFolder
from rankcast.run.pictures import draw_learning, draw_ranks
from rankcast.run.session import Session


def write_report(session: Session, folder: RunFolder) -> tuple[Comparison, list[Path]]:
    """Return the comparison and the pictures' files, after writing all of them."""
    comparison = compare(session)
    if not session.is_main:
        return comparison, []
    folder.write_json(folder.comparison, comparison.to_plain())
    ranks, learning = folder.path / "ranks.png", folder.path / "learning.png"
    plans = [
        (f"{row.snr_db:g} dB, mean {row.mean_rank:.1f}", row.ranks)
        for row in comparison.rows
        if row.allocator == "AirLLM"
    ]
    draw_ranks(ranks, session.learner.layout, plans)
    draw_learning(learning, folder.log)
    return comparison, [ranks, learning]
