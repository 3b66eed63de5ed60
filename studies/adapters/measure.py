"""Pack an adapter of every kind that PEFT has, and measure what is lost.

    python -m studies.adapters.measure

Each is made on a tiny model with random weights, packed, exported, and loaded by PEFT on a base
model of the same seed. Writes result.json; then renew the table in the documents with
`python3 dev.py study report --update docs/adapters.md`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from rankcast.files import replace_file
from rankcast.provenance import describe_device, package_versions

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)


def main() -> None:
    """Measure every kind with every seed and write result.json."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sys.path.insert(0, str(HERE.parents[1] / "tests"))
    adapters, trips = import_module("helpers.peft_methods"), import_module("helpers.round_trips")
    rows = []
    for name, method in (adapters.METHODS | adapters.VARIANTS).items():
        for seed in SEEDS:
            with TemporaryDirectory() as folder:
                trip = trips.round_trip(method, Path(folder), seed)
            method_of_peft = name in adapters.METHODS
            rows.append({"name": name, "method": method_of_peft, "seed": seed, **asdict(trip)})
        print(f"{name}: {rows[-1]['outcome']}", flush=True)
    result = {
        "command": "python -m studies.adapters.measure",
        "versions": package_versions(),
        "device": describe_device("cpu"),
        "seeds": SEEDS,
        "rows": rows,
    }
    text = json.dumps(result, indent=1) + "\n"
    replace_file(HERE / "result.json", lambda partial: partial.write_text(text, "utf-8"))


if __name__ == "__main__":
    main()
