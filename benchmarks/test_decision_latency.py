"""How long one decision takes: the straightforward DDIM loop against `FastSampler`, on one core.

All variants are timed in turn within each round, so that whatever else the machine does hits all
alike; `results/decision_latency.json` holds medians, extremes and ratios beside the floors that
weights read and operations set. The measuring runs in a process of its own, because BLAS reads its
number of threads when it is loaded. Run it alone with `python benchmarks/test_decision_latency.py`.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankcast.files import replace_file

if TYPE_CHECKING:
    from torch import Tensor

RESULTS = Path(__file__).parent / "results" / "decision_latency.json"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
N, CONDITION, BLOCKS = 144, 32, 2
ROUNDS = {1: 40, 64: 9}
BASELINE = "straightforward, 50 steps × 512"
EXACT = "exact, 50 steps × 512"
FEWER = "fast, 10 steps × 256"


@dataclass(frozen=True)
class Variant:
    """One way to decide: how, and with how large a chain and network."""

    name: str
    how: str
    steps: int
    hidden: int
    guidance_scale: float


VARIANTS = (
    Variant(BASELINE, "two eager calls a step", 50, 512, 2.0),
    Variant("batched, 50 steps × 512", "one eager call of 2B rows a step", 50, 512, 2.0),
    Variant(EXACT, "FastSampler", 50, 512, 2.0),
    Variant("exact, 10 steps × 512", "FastSampler", 10, 512, 2.0),
    Variant("guided, 10 steps × 256", "FastSampler", 10, 256, 2.0),
    Variant(FEWER, "FastSampler, guidance folded into training", 10, 256, 1.0),
    Variant("fast, 10 steps × 128", "FastSampler, guidance folded into training", 10, 128, 1.0),
    Variant("fast, 5 steps × 128", "FastSampler, guidance folded into training", 5, 128, 1.0),
)


def build(variant: Variant, batch: int) -> Callable[[], Tensor]:
    import torch

    from rankcast.policy.ddim import NoiseSchedule, ddim_sample, guided_predict
    from rankcast.policy.denoisers import ResidualMlpDenoiser
    from rankcast.policy.fast_ddim import FastSampler

    generator = torch.Generator().manual_seed(0)
    denoiser = ResidualMlpDenoiser(N, CONDITION, variant.hidden, BLOCKS)
    for p in denoiser.parameters():
        p.data = torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5
    schedule = NoiseSchedule.named("scaled_linear", 1000)
    x_T = torch.randn(batch, N, generator=generator)
    condition = torch.randn(batch, CONDITION, generator=generator)
    scale, hide = variant.guidance_scale, torch.ones(batch, dtype=torch.bool)

    def two_calls(x: Tensor, tau: Tensor) -> Tensor:
        uncond = denoiser(x, tau, condition, hide)
        return uncond + scale * (denoiser(x, tau, condition, ~hide) - uncond)

    if variant.how.startswith("FastSampler"):
        fast = FastSampler.from_denoiser(denoiser, schedule, variant.steps, scale)
        return lambda: fast.sample(x_T, condition)
    predict = two_calls if "two" in variant.how else guided_predict(denoiser, condition, scale)
    return lambda: ddim_sample(predict, x_T, schedule, steps=variant.steps)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(batch: int) -> dict[str, list[float]]:
    calls = {variant.name: build(variant, batch) for variant in VARIANTS}
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS[batch]):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return seconds


def weights(variant: Variant) -> int:
    """Weights that every step reads."""
    return 2 * N * variant.hidden + BLOCKS * variant.hidden**2


def operations(variant: Variant) -> int:
    """Multiplications and additions of one decision; guidance doubles the blocks only."""
    copies = 1 if variant.guidance_scale == 1.0 else 2
    hidden = variant.hidden
    return 2 * variant.steps * (2 * N * hidden + copies * BLOCKS * hidden**2)


def floor(variant: Variant) -> dict[str, float]:
    """What the weights read once a step, and the arithmetic, would take at this core's speed."""
    import numpy as np

    vector = np.ones(weights(variant) // 2, np.float32)
    matrix = np.ones((512, 512), np.float32)
    other = np.ones_like(vector)
    read = min(timed(lambda: np.dot(vector, other)) for _ in range(50))
    multiply = min(timed(lambda: matrix @ matrix) for _ in range(60))
    bandwidth = 2 * vector.nbytes / read
    peak = 2 * 512**3 / multiply
    n_bytes = 4 * weights(variant) * variant.steps
    return {
        "bytes_of_weights_read": n_bytes,
        "operations": operations(variant),
        "measured_read_bytes_per_s": round(bandwidth),
        "measured_operations_per_s": round(peak),
        "floor_by_bytes_ms": 1e3 * n_bytes / bandwidth,
        "floor_by_operations_ms": 1e3 * operations(variant) / peak,
    }


def summary(seconds: list[float], baseline: list[float], batch: int) -> dict[str, float]:
    median = statistics.median(seconds)
    return {
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "decisions_per_s": batch / median,
        "times_faster": statistics.median(baseline) / median,
        "times_faster_by_min": min(baseline) / min(seconds),
    }


def report() -> dict[str, Any]:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        by_batch = {batch: measure(batch) for batch in ROUNDS}
        outputs = {v.name: build(v, 1)() for v in VARIANTS if v.name in (BASELINE, EXACT)}
        rows = {
            variant.name: {
                **asdict(variant),
                **{
                    f"batch_{batch}": summary(times[variant.name], times[BASELINE], batch)
                    for batch, times in by_batch.items()
                },
                "floor_batch_1": floor(variant),
            }
            for variant in VARIANTS
        }
    return {
        "n_projections": N,
        "condition_dim": CONDITION,
        "threads": 1,
        "rounds": {str(batch): n for batch, n in ROUNDS.items()},
        "exact_differs_from_straightforward_by": float(
            (outputs[BASELINE] - outputs[EXACT]).abs().max()
        ),
        "variants": rows,
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
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = report()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    replace_file(RESULTS, lambda partial: partial.write_text(text, "utf-8"))
    for name, row in result["variants"].items():
        one, many, least = row["batch_1"], row["batch_64"], row["floor_batch_1"]
        print(
            f"{name:32s} {one['median_ms']:8.3f} ms ({one['min_ms']:.3f}–{one['max_ms']:.3f}) "
            f"×{one['times_faster']:6.1f}   floor {least['floor_by_bytes_ms']:.3f} ms   "
            f"batch 64: {many['decisions_per_s']:9.0f}/s ×{many['times_faster']:.1f}"
        )


def test_decision_latency() -> None:
    subprocess.run(  # noqa: S603 - runs this file
        [sys.executable, __file__], env={**os.environ, **ONE_THREAD}, check=True, timeout=300
    )
    result = json.loads(RESULTS.read_text("utf-8"))
    assert result["exact_differs_from_straightforward_by"] < 1e-4
    assert result["variants"][EXACT]["batch_1"]["times_faster"] >= 2.0
    assert result["variants"][FEWER]["batch_1"]["times_faster"] >= 20.0


if __name__ == "__main__":
    main()
