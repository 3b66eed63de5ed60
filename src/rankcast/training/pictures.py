"""Pictures: of a run the ranks for each link and how learning went, and of the radio its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.errors import ConfigError
from rankcast.files import replace_file
from rankcast.link.curves import LinkCurves
from rankcast.records import AdapterLayout, FloatArray, IntArray
from rankcast.training.journal import read_log
from rankcast.training.palette import COLOURS

BLUE, GREY = COLOURS[0], "#9aa4b0"
DASHES = ("-", "--", ":", "-.", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 3)))
"""Of lines beside one another, ours first."""


def draw_ranks(path: Path, layout: AdapterLayout, plans: Sequence[tuple[str, IntArray]]) -> None:
    """Draw layers × kinds of projection, a panel for each plan, as PNG.

    Args:
        path: the file.
        layout: names the projections.
        plans: a title and (N,) ranks for each panel.
    """
    plt = _pyplot()
    width = 0.34 * len(layout.kinds) + 0.8
    height = 0.3 * layout.n_layers + 1.5
    figure, axes = plt.subplots(
        1, len(plans), figsize=(width * len(plans) + 1.0, height), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    image = None
    for axis, (title, ranks) in zip(axes[0], plans, strict=True):
        grid = rank_grid(layout, ranks)
        image = axis.imshow(grid, vmin=0, vmax=layout.r_max, cmap="viridis", aspect="auto")
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(layout.kinds)), layout.kinds, fontsize=8)
        axis.set_yticks(range(0, layout.n_layers, max(layout.n_layers // 12, 1)))
        if layout.n_layers * len(layout.kinds) <= 80:
            _write_numbers(axis, grid, layout.r_max)
    axes[0][0].set_ylabel("layer")
    figure.supxlabel("projection", fontsize=10)
    figure.colorbar(image, ax=axes[0].tolist(), label="rank", shrink=0.9)
    _save(figure, path)


def rank_grid(layout: AdapterLayout, ranks: IntArray) -> FloatArray:
    """Return (L, kinds) ranks; NaN where a layer has no such projection."""
    layers = sorted({p.layer for p in layout.projections})
    grid = np.full((len(layers), len(layout.kinds)), np.nan)
    for projection, rank in zip(layout.projections, ranks, strict=True):
        grid[layers.index(projection.layer), layout.kinds.index(projection.kind)] = rank
    return grid


def draw_learning(path: Path, log: Path) -> None:
    """Draw reward, accuracy, mean rank and link cost against training steps, as PNG."""
    plt = _pyplot()
    steps, episodes = read_log(log, "step"), read_log(log, "episode")
    evaluations = read_log(log, "evaluation")
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 5.6), sharex=True, layout="constrained")
    for axis, name, title in (
        (axes[0][0], "reward", "reward"),
        (axes[1][0], "mean_rank", "mean rank"),
        (axes[1][1], "link_cost", "link cost η"),
    ):
        at, values = _column(steps, name)
        axis.plot(at, values, ".", color=GREY, markersize=3, label="each step")
        at, values = _column(episodes, name)
        axis.plot(at, values, color=BLUE, linewidth=1.8, label="mean of an episode")
        axis.set_title(title, fontsize=10)
    axes[0][0].legend(fontsize=8, frameon=False)
    at, values = _column(evaluations, "accuracy")
    axes[0][1].plot(at, 100 * values, "o-", color=BLUE, linewidth=1.8, markersize=4)
    axes[0][1].set_title("validation accuracy [%]", fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("training step")
    _save(figure, path)


def draw_link_curves(path: Path, curves: LinkCurves) -> None:
    """Draw rate against SNR for every model, and below it the waterfalls of the schemes."""
    plt = _pyplot()
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8.0, 8.0), sharex=True, layout="constrained"
    )
    names = sorted(curves.rates, key=lambda name: name != curves.nr)  # the simulated radio first
    for place, name in enumerate(names):
        above.plot(
            curves.snr_db, curves.rates[name], label=name, linewidth=1.4 if place else 2.6,
            color=COLOURS[place % len(COLOURS)], linestyle=DASHES[place % len(DASHES)],
        )  # fmt: skip
    above.set_ylabel("rate [bit/s/Hz]")
    above.set_ylim(0.0, None)
    above.legend(fontsize=8, frameon=False)
    above.set_title(f"{curves.bandwidth_hz / 1e6:g} MHz", fontsize=10)
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.95, len(curves.block_error)))
    for index, (lost, colour) in enumerate(zip(curves.block_error, colours, strict=True)):
        below.semilogy(curves.snr_db, lost, color=colour)
        at = int(np.argmin(np.abs(lost - 0.5)))
        below.text(
            curves.snr_db[at],
            1.1 if index % 2 else 1.5,
            str(index),
            fontsize=7,
            ha="center",
            color=colour,
        )
    below.set_ylim(1e-3, 2.2)
    below.set_ylabel("transport blocks lost, first transmission")
    below.set_xlabel("Es/N0 [dB]")
    for axis in (above, below):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _column(rows: Sequence[dict[str, Any]], name: str) -> tuple[FloatArray, FloatArray]:
    """Return the steps and the values of a column."""
    table = np.array([[row["step"], row[name]] for row in rows], dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _write_numbers(axis: Any, grid: FloatArray, r_max: int) -> None:
    """Write each rank into its cell, in a colour that can be read on it."""
    for (row, column), rank in np.ndenumerate(grid):
        if np.isfinite(rank):
            colour = "black" if rank > 0.6 * r_max else "white"
            axis.text(
                column, row, f"{rank:.0f}", ha="center", va="center", color=colour, fontsize=8
            )


def _save(figure: Any, path: Path) -> None:
    """Write a figure in the format that its name says, PNG if none, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].lower() or "png"
    if kind not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path}: pictures are .png, .svg or .pdf.")
    replace_file(path, lambda partial: figure.savefig(partial, dpi=130, format=kind))
    _pyplot().close(figure)


def _pyplot() -> Any:
    """Import matplotlib without a display."""
    import matplotlib as mpl  # noqa: PLC0415 takes a second

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    return plt
