"""How fast an adapter is coded and decoded, on one core, beside what cannot be avoided.

An adapter of MiniLM's shape (36 projections, rank 8, Gaussian columns and rows of falling size) is
coded at three sizes, in one chunk and in a ladder. Rates are megabytes of float32 adapter a second.
Beside them, timed in the same rounds: one pass of rounding over the numbers, constriction's decoder
on as many symbols of one model, and zlib on the float32 bytes. Run it alone with
`python benchmarks/test_codec_speed.py`; results lie in `results/codec_speed.json`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "codec_speed.json"
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
ROUNDS = 15
RELATIVE_STEPS = (0.5, 1.5, 3.0)
ENCODE_GOAL, DECODE_GOAL = 20.0, 50.0


def adapter() -> Any:
    import numpy as np

    from rankcast.codec.tensors import AdapterTensors, Factors
    from rankcast.records import Projection

    rng = np.random.default_rng(0)
    widths = {"q": (384, 384), "k": (384, 384), "v": (384, 384), "o": (384, 384),
              "fc1": (384, 1536), "fc2": (1536, 384)}  # fmt: skip
    projections, factors = [], []
    for layer in range(6):
        for kind, (d_in, d_out) in widths.items():
            size = np.sqrt(0.5 * 0.7 ** np.arange(8))
            left = rng.normal(size=(d_out, 8)) * size / np.sqrt(d_out)
            right = rng.normal(size=(8, d_in)) * size[:, None] / np.sqrt(d_in)
            factors.append(Factors(left.astype(np.float32), right.astype(np.float32)).balanced())
            projections.append(Projection(f"layers.{layer}.{kind}", layer, kind, d_in, d_out))
    return AdapterTensors(tuple(projections), tuple(factors), {}, {})


def tasks() -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is timed, with the bytes that came out."""
    import numpy as np

    from rankcast.codec.chunks import ChunkPlan, Decoder, encode
    from rankcast.codec.entropy_model import fresh_model
    from rankcast.codec.header import BaseModel, Header
    from rankcast.codec.packing import chunk_plans, exponent_of_quality
    from rankcast.codec.symbols import SymbolReader, SymbolWriter

    tensors = adapter()
    ranks = tuple(tensors.ranks.tolist())
    header = Header(BaseModel(), tensors.projections, ranks, (), ())
    values = np.concatenate([x.ravel() for f in tensors.factors for x in (f.left, f.right)])
    found: dict[str, tuple[Callable[[], object], int]] = {}

    def decode(chunks: list[bytes]) -> object:
        decoder = Decoder(header)
        for chunk in chunks:
            decoder.add(chunk)
        return decoder.tensors()

    for relative in RELATIVE_STEPS:
        exponent = exponent_of_quality(tensors, relative)
        one, ladder = [ChunkPlan(exponent, ranks)], chunk_plans(tensors, exponent)
        plans = {"one chunk": one, "ladder": ladder}
        for name, plan in plans.items():
            chunks = encode(tensors, plan)
            size = sum(map(len, chunks))
            label = f"step {relative:g} rms, {name}"
            found[f"encode, {label}"] = (lambda plan=plan: encode(tensors, plan), size)
            found[f"decode, {label}"] = (lambda chunks=chunks: decode(chunks), size)
    symbols = np.clip(np.rint(values / values.std()), -13, 13).astype(np.int32) + 13
    writer = SymbolWriter()
    writer.many(symbols, len(symbols), fresh_model(11))
    data = writer.to_bytes(0)
    found["floor: round every number"] = (lambda: np.rint(values / np.float32(0.03)), values.nbytes)
    found["floor: decode as many symbols of one model"] = (
        lambda: SymbolReader(data, 0).many(None, len(symbols), fresh_model(11)),
        len(data),
    )
    raw = values.tobytes()
    found["zlib, level 6, of float32"] = (lambda: zlib.compress(raw, 6), len(zlib.compress(raw, 6)))
    return found


def measure() -> dict[str, Any]:
    found = tasks()
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(ROUNDS + 1):
        for name, (call, _) in found.items():
            start = time.perf_counter()
            call()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    megabytes = 4 * adapter().n_params / 1e6
    rows = {
        name: {
            "mb_per_s": megabytes / statistics.median(seen),
            "slowest_mb_per_s": megabytes / max(seen),
            "fastest_mb_per_s": megabytes / min(seen),
            "bytes": found[name][1],
            "times_smaller": megabytes * 1e6 / found[name][1],
        }
        for name, seen in times.items()
    }
    from importlib.metadata import version

    import constriction  # noqa: F401 imported for its version
    import numpy as np

    return {
        "adapter_mb": megabytes,
        "rounds": ROUNDS,
        "device": f"{platform.machine()}, one thread",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "constriction": version("constriction"),
        },
        "command": "python benchmarks/test_codec_speed.py",
        "rows": rows,
    }


def run() -> dict[str, Any]:
    """Measure in a process of its own and keep the result."""
    code = "import json, test_codec_speed as t; print(json.dumps(t.measure()))"
    done = subprocess.run(  # noqa: S603 our own interpreter
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | ONE_THREAD,
        check=True,
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def test_codec_keeps_up() -> None:
    rows = run()["rows"]
    for name, row in rows.items():
        print(f"{name:48} {row['mb_per_s']:8.1f} MB/s {row['times_smaller']:8.1f} times smaller")
    zlib_speed = rows["zlib, level 6, of float32"]["mb_per_s"]
    assert all(r["mb_per_s"] > 0.1 * zlib_speed for n, r in rows.items() if "encode" in n)


if __name__ == "__main__":
    test_codec_keeps_up()
