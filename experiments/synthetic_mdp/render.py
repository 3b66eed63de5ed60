"""Collect rows/ into result.json, and make the tables and the plot from it alone.

python experiments/synthetic_mdp/render.py
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import t as student

mpl.use("Agg")
HERE = Path(__file__).parent
CHECKPOINTS = (100, 300, 1000)
LABELS = {
    "airllm": "AirLLM (PPO + DDIM)",
    "ddim": "DDIM alone",
    "teacher": "teacher (Thompson sampling, exact solver)",
    "ppo": "PPO alone, Table II",
    "ppo-faster": "PPO alone, learning rate 1e-3, 10 epochs",
    "reward-weighted": "PPO + DDIM, reward-weighted",
    "random": "random ranks",
    "airllm-no-imitation": "AirLLM, actor without the teacher",
}


def interval(values: list[float]) -> tuple[float, float]:
    """Return mean and half-width of the 95 % t interval over seeds."""
    x = np.array(values)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    half = student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def collect() -> dict[str, Any]:
    """Read all rows and write result.json; without rows, read result.json as it is."""
    if not (HERE / "rows").exists():
        return json.loads((HERE / "result.json").read_text())
    rows = [json.loads(path.read_text()) for path in sorted((HERE / "rows").glob("*.json"))]
    packages = ("rankcast", "torch", "numpy", "scipy", "gymnasium")
    result = {
        "command": "python experiments/synthetic_mdp/run.py",
        "versions": {name: version(name) for name in packages}
        | {"python": platform.python_version()},
        "device": f"CPU, {platform.machine()}, one thread a run",
        "rows": rows,
    }
    partial = HERE / "result.json.tmp"
    partial.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    partial.rename(HERE / "result.json")
    return result


def at(row: dict[str, Any], episode: int, what: str = "deployed") -> float | None:
    """Return the regret at one episode."""
    return next((p[what] for p in row["curve"] if p["episode"] == episode), None)


def last_hundred(row: dict[str, Any]) -> float:
    """Return the exploring policy's mean regret over the evaluations of the last 100 episodes."""
    return float(
        np.mean([p["exploring"] for p in row["curve"] if p["episode"] > row["episodes"] - 100])
    )


def table(result: dict[str, Any], share: float) -> str:
    """Return a Markdown table of regrets for one share of interactions."""
    lines = [
        "| policy | after 100 | after 300 | after 1,000 | exploring, last 100 | seeds | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, label in LABELS.items():
        rows = select(result, variant, share)
        if not rows:
            continue
        cells = []
        for episode in CHECKPOINTS:
            values = [v for row in rows if (v := at(row, episode)) is not None]
            cells.append("{:.3f} ± {:.3f}".format(*interval(values)) if values else "–")
        cells.append("{:.3f} ± {:.3f}".format(*interval([last_hundred(row) for row in rows])))
        cpu_s = np.median([row["cpu_s"] for row in rows])
        lines.append(f"| {label} | {' | '.join(cells)} | {len(rows)} | {cpu_s:.0f} |")
    return "\n".join(lines)


def paired(result: dict[str, Any], share: float) -> str:
    """Return a Markdown table of paired differences AirLLM - other, seed by seed."""
    lines = ["| AirLLM minus | after 100 | after 300 | after 1,000 |", "|---|---|---|---|"]
    ours = {row["seed"]: row for row in select(result, "airllm", share)}
    for variant, label in LABELS.items():
        others = [r for r in select(result, variant, share) if r["seed"] in ours]
        if variant == "airllm" or not others:
            continue
        cells = []
        for episode in CHECKPOINTS:
            pairs = [(at(ours[row["seed"]], episode), at(row, episode)) for row in others]
            values = [a - b for a, b in pairs if a is not None and b is not None]
            cells.append("{:+.3f} ± {:.3f}".format(*interval(values)) if values else "–")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def select(result: dict[str, Any], variant: str, share: float) -> list[dict[str, Any]]:
    """Return the rows of one variant."""
    return [
        row
        for row in result["rows"]
        if row["variant"] == variant and row["interaction_share"] == share
    ]


def stricter(result: dict[str, Any]) -> str:
    """Return one sentence: the same regrets against the best uniform rank of each SNR."""
    rows = select(result, "airllm", 0.0)
    values = {}
    for episode in CHECKPOINTS:
        scaled = [
            value
            * (row["best_uniform"] - row["oracle"])
            / (row["best_uniform_per_snr"] - row["oracle"])
            for row in rows
            if (value := at(row, episode)) is not None
        ]
        values[episode] = interval(scaled)
    text = ", ".join(f"{m:.3f} ± {h:.3f} after {e:,}" for e, (m, h) in values.items())
    return (
        f"Measured against the best uniform rank *of each SNR* instead, AirLLM's regret is {text}."
    )


def draw(result: dict[str, Any]) -> None:
    """Write regret.png: regret against episodes, mean and range over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), sharey=True, layout="constrained")
    shares = (0.0, 0.2)
    titles = ("additive utility", "with pairwise interactions (20 % of the variance)")
    for axis, share, title in zip(axes, shares, titles, strict=True):
        for number, (variant, label) in enumerate(LABELS.items()):
            rows = select(result, variant, share)
            if not rows:
                continue
            episodes = [p["episode"] for p in rows[0]["curve"]]
            regrets = np.array([[p["deployed"] for p in row["curve"]] for row in rows])
            axis.plot(episodes, regrets.mean(axis=0), color=f"C{number}", label=label)
            axis.fill_between(
                episodes, regrets.min(axis=0), regrets.max(axis=0), color=f"C{number}", alpha=0.15
            )
        axis.set(title=title, xlabel="episodes of 15 steps", yscale="log", xlim=(0, None))
        axis.axhline(1.0, color="grey", lw=0.8, ls=":")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("regret (1 = best uniform rank, 0 = optimum)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(HERE / "regret.png", dpi=130)


def render() -> str:
    """Return the README's results block."""
    return table(json.loads((HERE / "result.json").read_text()), 0.0)


def main() -> None:
    """Collect, print, draw."""
    result = collect()
    blocks = {
        "additive": table(result, 0.0),
        "paired": paired(result, 0.0),
        "stricter": stricter(result),
        "coupled": table(result, 0.2),
        "coupled-paired": paired(result, 0.2),
    }
    readme = HERE / "README.md"
    text = readme.read_text()
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, rest = text.split(start)
        text = f"{head}{start}\n\n{block}\n\n{end}{rest.split(end)[1]}"
        print(block, end="\n\n")
    readme.write_text(text)
    draw(result)


if __name__ == "__main__":
    main()
