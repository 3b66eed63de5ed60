"""`rankcast evaluate`: the run's policy beside other allocators, on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankcast.cli.common import Run, print_json

if TYPE_CHECKING:
    from rankcast.allocation.problem import Allocator
    from rankcast.training.folder import RunFolder
    from rankcast.training.run import Session


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare a run's policy with other allocators on the test split.

    rankcast evaluate --run runs/demo

    rankcast evaluate --run runs/demo --allocator mine.allocators:Greedy
    """

    run_folder: Run
    """Folder of a trained run; comparison.json, ranks.png and learning.png are written there."""
    allocator: str | None = None
    """An allocator of your own to compare, too, as package.module:Class."""
    json: bool = False
    """Print the comparison as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Judge every plan and print the table."""
        from rankcast.allocation.custom import load_allocator
        from rankcast.training.folder import RunFolder
        from rankcast.training.planner import load_policy
        from rankcast.training.run import Session

        folder, own = RunFolder(self.run_folder), None
        if self.allocator is not None:  # what is wrong with it is said before a model is loaded
            own = load_allocator(self.allocator, load_policy(folder).problem)
        session = Session(folder.load_config())
        session.load(folder)
        print_comparison(session, folder, own, as_json=self.json)
        return 0


def print_comparison(
    session: Session, folder: RunFolder, own: Allocator | None = None, *, as_json: bool
) -> None:
    """Judge every allocator's plans, write the report into the run's folder and print it."""
    from rankcast.cli.console import comparison_table, comparison_words, stdout
    from rankcast.training.comparison import write_report

    comparison, files = write_report(session, folder, own)
    if as_json:
        print_json(comparison.to_plain())
        return
    stdout().print(comparison_table(comparison))
    stdout().print(comparison_words(comparison))
    stdout().print("Pictures: " + ", ".join(map(str, files)))
