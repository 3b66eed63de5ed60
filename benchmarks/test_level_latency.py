"""How long a whole decision takes for levels, beside one for ranks: policy and exact solver.

Both problems have 36 projections and eight steps of each; of levels each step has bits of its own.
Links are alike: everything just arrives at 5 dB, so that the deadline binds as often. They are
timed in turn in one process, on one core. `python benchmarks/test_level_latency.py`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankcast.files import replace_file

RESULTS = Path(__file__).parent / "results" / "level_latency.json"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
ROUNDS = 200
MOST_TIMES = 1.5


def decisions() -> dict[str, Callable[[], Any]]:
    """Return one decision of each kind; every call decides for another link."""
    import numpy as np

    from rankcast.allocation.problem import AllocationProblem
    from rankcast.allocation.waterfilling import plan_at_price
    from rankcast.config.link import LinkConfig
    from rankcast.learner.synthetic import transformer_layout
    from rankcast.learner.synthetic_levels import synthetic_level_problem
    from rankcast.policy.airllm import AirLLM
    from rankcast.records import LinkState, Observation, TextStats

    layout = transformer_layout()
    _, of_levels = synthetic_level_problem(0)
    problems = {
        "ranks": AllocationProblem.from_config(LinkConfig(), layout),
        "levels": of_levels,
    }
    rng = np.random.default_rng(0)
    text = TextStats(np.array([2.0]), np.array([0.1]))
    calls: dict[str, Callable[[], Any]] = {}
    for name, problem in problems.items():
        policy = AirLLM(problem)
        gains = -np.sort(-rng.random((1, *problem.link_costs.component_units.shape)), axis=-1)
        nothing = np.zeros((1, layout.n_projections), dtype=np.int64)
        whole_hz = problem.link_costs.full_bits / np.log2(1 + 10**0.5)

        def seen(hz: float = whole_hz, nothing: Any = nothing) -> Observation:
            link = LinkState(rng.uniform(0.0, 15.0, 1), np.array([hz]), np.ones(1))
            return Observation(link, text, nothing)

        calls[f"policy, {name}"] = lambda p=policy, s=seen: p.allocate(s(), rng)
        calls[f"solver, {name}"] = lambda g=gains, p=problem, s=seen: plan_at_price(g, p, s())
    return calls


def report() -> dict[str, Any]:
    """Time every decision, alternating."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    calls = decisions()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 5):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 5:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    return {
        "median_ms": medians,
        "levels_over_ranks": {
            who: medians[f"{who}, levels"] / medians[f"{who}, ranks"]
            for who in ("policy", "solver")
        },
        "rounds": ROUNDS,
        "environment": {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        },
    }


def main() -> None:
    """Measure and write the results."""
    result = report()
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    replace_file(RESULTS, lambda partial: partial.write_text(text, "utf-8"))
    for name, median in result["median_ms"].items():
        print(f"{name:16s} {median:8.3f} ms")
    print(result["levels_over_ranks"])


def test_level_latency() -> None:
    subprocess.run(  # noqa: S603 - runs this file
        [sys.executable, __file__], env={**os.environ, **ONE_THREAD}, check=True, timeout=300
    )
    result = json.loads(RESULTS.read_text("utf-8"))
    assert max(result["levels_over_ranks"].values()) <= MOST_TIMES


if __name__ == "__main__":
    main()
