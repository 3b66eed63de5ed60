"""Progress, plans and tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rankcast.records import AdapterLayout, IntArray, LinkState, Plan

if TYPE_CHECKING:  # these need torch
    from rankcast.training.byte_run import SizeRow
    from rankcast.training.comparison import Comparison, ComparisonRow
    from rankcast.training.journal import EvaluationRow, StepRow
    from rankcast.training.level_policy import PlannedLink

SMOOTHING = 0.9


def stdout() -> Console:
    """Return the console for results."""
    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """Return the console for progress, so that standard output holds nothing but results."""
    return Console(stderr=True, highlight=False)


class _Bar:
    """A bar that appears with the first thing that it is told."""

    def __init__(self, console: Console, what: str, total: int | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[seen]}"),
            console=console,
        )
        self._task = self._progress.add_task(what, total=total, seen="")

    def close(self) -> None:
        """Stop drawing."""
        if self._progress.live.is_started:
            self._progress.stop()


class LiveProgress(_Bar):
    """A bar with running means of reward, mean rank and link cost, and the last accuracy.

    Args:
        console: where to draw; standard error, so that standard output stays for results.
        total: steps of the run.
    """

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, "training", total)
        self._means: tuple[float, float, float] | None = None
        self._accuracy = "–"

    def on_step(self, row: StepRow) -> None:
        """Move the bar by one training step; it appears with the first."""
        self._progress.start()
        new = (row.reward, row.mean_rank, row.link_cost)
        old = self._means or new
        reward, rank, cost = self._means = (
            SMOOTHING * old[0] + (1 - SMOOTHING) * new[0],
            SMOOTHING * old[1] + (1 - SMOOTHING) * new[1],
            SMOOTHING * old[2] + (1 - SMOOTHING) * new[2],
        )
        seen = f"reward {reward:.2f}  accuracy {self._accuracy}  rank {rank:.1f}  η {cost:.2f}"
        self._progress.update(self._task, completed=row.step, seen=seen)

    def on_evaluation(self, row: EvaluationRow) -> None:
        """Show a new accuracy."""
        self._accuracy = f"{row.accuracy:.1%}"
        self._progress.console.print(
            f"step {row.step}: validation accuracy {row.accuracy:.1%} with the plan for "
            f"{row.snr_db:g} dB (mean rank {row.mean_rank:.1f})"
        )


class PassProgress(_Bar):
    """A bar of what is measured, in passes or texts, which appears with the first.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, "measuring")

    def on_pass(self, what: str, done: int, total: int) -> None:
        """Show how many of all passes or texts are done."""
        self._progress.start()
        self._progress.update(
            self._task, description=f"measuring {what}", completed=done, total=total
        )


class SizeProgress(_Bar):
    """A bar with a running mean of the loss and the bytes that the file would have.

    Attributes:
        done: steps taken.

    Args:
        console: where to draw.
        total: steps of the training.
        episodes: in which a policy learns afterwards.
    """

    def __init__(self, console: Console, total: int, episodes: int = 0) -> None:
        super().__init__(console, "training", total)
        self._episodes = episodes
        self._planning: TaskID | None = None
        self._loss: float | None = None
        self.done = 0

    def on_step(self, row: SizeRow) -> None:
        """Move the bar by one training step; it appears with the first."""
        size = "float32" if row.n_bytes is None else f"{row.n_bytes:,.0f} bytes"
        self.on_loss(row.step, row.loss, size)

    def on_loss(self, step: int, loss: float, more: str = "") -> None:
        """Move the bar by one training step, of which no more than its loss may be known."""
        self._progress.start()
        self.done = step
        self._loss = SMOOTHING * (self._loss or loss) + (1 - SMOOTHING) * loss
        self._progress.update(self._task, completed=step, seen=f"loss {self._loss:.3f}  {more}")

    def on_episode(self, done: int) -> None:
        """Move the bar of the policy by one episode."""
        self._progress.start()
        if self._planning is None:
            self._planning = self._progress.add_task("planning", total=self._episodes, seen="")
        self._progress.update(self._planning, completed=done)


def number_table(*columns: str, title: str | None = None, left: str = "") -> Table:
    """Return an empty table; its columns but the one named `left` are aligned to the right."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in columns:
        if name == left:
            table.add_column(name, no_wrap=True)
        else:
            table.add_column(name, justify="right")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Return the table that a comparison ends in."""
    columns = ["mean rank", "ranks", "Mbit", "seconds", "link cost", "accuracy", "loss"]
    exact = any(row.judged.exact_match is not None for row in comparison.rows)
    columns += ["perplexity", "exact match"] if exact else []
    title = "The test split under each allocator's plan"
    table = number_table("dB", "allocator", *columns, title=title, left="allocator")
    last: ComparisonRow | None = None
    for row in comparison.rows:
        new_link = last is None or last.snr_db != row.snr_db
        if new_link and last is not None:
            table.add_section()
        table.add_row(
            f"{row.snr_db:g}" if new_link else "",
            row.allocator,
            f"{row.plan.ranks.mean():.2f}",
            f"{row.plan.ranks.min()}–{row.plan.ranks.max()}",
            f"{row.plan.payload_bits / 1e6:.2f}",
            f"{row.plan.transmission_time_s:.3f}",
            f"{row.plan.link_cost:.2f}",
            f"{row.judged.accuracy:.1%}",
            f"{row.judged.loss:.3f}",
            *_of_tokens(row.judged.to_plain()),
        )
        last = row
    return table


def _of_tokens(judged: Mapping[str, float]) -> list[str]:
    """Return what only a language model's judgement has."""
    if "exact_match" not in judged:
        return []
    return [f"{judged['perplexity']:.2f}", f"{judged['exact_match']:.1%}"]


def comparison_words(comparison: Comparison) -> str:
    """Say how AirLLM does beside uniform ranks over all links."""
    whole = comparison.differences[-1]
    airllm, other = (
        [row.plan.payload_bits for row in comparison.rows if row.allocator == name]
        for name in ("AirLLM", whole.other)
    )
    share = sum(airllm) / sum(other) if sum(other) else float("nan")
    return (
        f"AirLLM against {whole.other} ranks, mean over the links: accuracy "
        f"{whole.difference:+.1%} (95 % interval {whole.low:+.1%} to {whole.high:+.1%}, paired), "
        f"{share:.0%} of its bits."
    )


def result_table(result: Mapping[str, Any]) -> Table:
    """Return what a finished training run says of each link."""
    columns = ("SNR [dB]", "mean rank", "Mbit", "seconds", "link cost", "validation", "test")
    title = f"{result['policy']} after {result['steps']} steps, {result['wall_s']:.0f} s"
    table = number_table(*columns, title=title)
    for row in result["links"]:
        table.add_row(
            f"{row['snr_db']:g}",
            f"{row['mean_rank']:.2f}",
            f"{row['payload_bits'] / 1e6:.2f}",
            f"{row['transmission_time_s']:.3f}",
            f"{row['link_cost']:.2f}",
            f"{row['validation_accuracy']:.1%}",
            f"{row['test_accuracy']:.1%}",
        )
    return table


def planned_table(links: Sequence[PlannedLink]) -> Table:
    """Return what each link gets, in bytes as coded."""
    columns = ("SNR [dB]", "bytes that arrive", "sent", "accuracy", "largest file", "accuracy")
    table = number_table(*columns, title="What each link gets, on texts that were not trained on")
    for link in links:
        table.add_row(
            f"{link.snr_db:g}",
            f"{link.budget_bytes:,}",
            f"{link.n_bytes:,}",
            f"{link.planned.accuracy:.1%}",
            f"{link.largest_bytes:,}",
            f"{link.largest.accuracy:.1%}",
        )
    return table


def plan_words(plan: Plan, link: LinkState) -> str:
    """Say what a plan costs on its link."""
    return (
        f"{link.snr_db[0]:g} dB, {link.bandwidth_hz[0] / 1e6:g} MHz, {link.deadline_s[0]:g} s: "
        f"{plan.payload_bits:,.0f} bits in {plan.transmission_time_s:.3g} s, "
        f"link cost {plan.link_cost:.3f}, mean rank {plan.ranks.mean():.2f}"
    )


def plan_table(layout: AdapterLayout, chosen: IntArray) -> Table:
    """Return (N,) ranks as layers × kinds of projection."""
    table = number_table("layer", *layout.kinds)
    ranks = {(p.layer, p.kind): r for p, r in zip(layout.projections, chosen, strict=True)}
    for layer in sorted({p.layer for p in layout.projections}):
        table.add_row(str(layer), *(str(ranks.get((layer, k), "–")) for k in layout.kinds))
    return table
