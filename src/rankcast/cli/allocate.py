"""`rankcast allocate`: the plan for one link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankcast.cli.common import Run, print_json


@dataclass(frozen=True, kw_only=True)
class Allocate:
    """Print which ranks to send over a link; needs no base model.

    rankcast allocate --run runs/demo --snr-db 5 --bandwidth-hz 2e6 --deadline-s 1

    rankcast allocate --run runs/demo --snr-db 5 --allocator mine.allocators:Greedy
    """

    run_folder: Run
    """Folder of a trained run."""
    snr_db: float
    """Received Es/N0 [dB]."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Time in which the plan has to arrive [s]; the run's own if left out."""
    allocator: str | None = None
    """An allocator of your own instead of the run's policy, as package.module:Class."""
    json: bool = False
    """Print the plan as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the plan."""
        from rankcast.allocation.custom import load_allocator
        from rankcast.training.planner import load_policy

        planner = load_policy(self.run_folder)
        own = None if self.allocator is None else load_allocator(self.allocator, planner.problem)
        link = planner.link(self.snr_db, self.bandwidth_hz, self.deadline_s)
        plan = planner.plan(link, own)
        if self.json:
            print_json(planner.describe(plan, link))
            return 0
        from rankcast.cli.console import plan_table, plan_words, stdout

        stdout().print(plan_words(plan, link))
        stdout().print(plan_table(planner.problem.layout, plan))
        return 0
