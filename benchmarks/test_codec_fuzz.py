"""A hundred thousand damaged containers, half of them of version 3.

The suite tries a few thousand of the same kind.

Run it alone with `python benchmarks/test_codec_fuzz.py`; what came out lies in
`results/codec_fuzz.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "codec_fuzz.json"
N_MUTANTS, SEED = 100_000, 1


def test_no_damage_crashes_or_yields_an_adapter() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.codec import packed, random_adapter
    from helpers.mutations import MEMORY_BYTES, try_mutants

    tensors = random_adapter(0, modules={"classifier.weight": (2, 24), "classifier.bias": (2,)})
    start = time.perf_counter()
    outcome = sum(
        (try_mutants(packed(tensors, lean=lean).to_bytes(), N_MUTANTS // 2, SEED + lean)
         for lean in (False, True)),
        Counter(),
    )  # fmt: skip
    result = {
        "mutants": N_MUTANTS,
        "seed": SEED,
        "outcome": dict(outcome),
        "crashes": 0,
        "memory_bound_bytes": MEMORY_BYTES,
        "seconds": time.perf_counter() - start,
        "versions": {name: version(name) for name in ("numpy", "constriction")},
        "command": "python benchmarks/test_codec_fuzz.py",
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(result["outcome"])
    assert sum(outcome.values()) == N_MUTANTS


if __name__ == "__main__":
    test_no_damage_crashes_or_yields_an_adapter()
