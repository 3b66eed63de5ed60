"""`rankcast allocate`: the plan for one link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from rankcast.cli.common import Run, print_json


@dataclass(frozen=True, kw_only=True)
class Allocate:
    """Print what to send over a link; needs no base model.

    rankcast allocate --run runs/demo --snr-db 5 --bandwidth-hz 2e6 --deadline-s 1

    rankcast allocate --run runs/links --snr-db 2 --bandwidth-hz 1e4 -o at-2-db.rcast

    Ranks for the policy of a run of ranks. For one of levels (codec.plan_episodes) the components
    of a coded file, whose bytes are counted, and with --output the file itself.

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
    output: Annotated[str | None, tyro.conf.arg(aliases=("-o",))] = None
    """Write the plan's file here, of a run whose policy plans levels."""
    json: bool = False
    """Print the plan as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Print the plan."""
        from rankcast.allocation.custom import load_allocator
        from rankcast.training.planner import load_policy

        planner = load_policy(self.run_folder)
        own = None if self.allocator is None else load_allocator(self.allocator, planner.problem)
        link = planner.link(self.snr_db, self.bandwidth_hz, self.deadline_s)
        plan, n_bytes = planner.plan(link, own), None
        if self.output is not None:
            n_bytes = planner.file(plan, link).save(self.output).stat().st_size
        if self.json:
            written = {} if n_bytes is None else {"file": self.output, "bytes": n_bytes}
            print_json(planner.describe(plan, link) | written)
            return 0
        from rankcast.cli.console import plan_table, plan_words, stdout

        stdout().print(plan_words(plan, link))
        stdout().print(plan_table(planner.problem.layout, planner.ranks(plan)))
        if n_bytes is not None:
            print(f"{self.output}: {n_bytes:,} bytes.")
        return 0
