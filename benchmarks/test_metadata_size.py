"""How many bytes a device fetches to learn whether there is anything new.

A store with 1, 10, 100 adapters; a device that looks when nothing changed, and after another
adapter was published. Bytes of files, without HTTP's heads. Run it alone with
`python benchmarks/test_metadata_size.py`; what came out lies in `results/metadata_size.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

RESULTS = Path(__file__).parent / "results" / "metadata_size.json"
N_ADAPTERS = (1, 10, 100)


def bytes_of_looks(folder: Path, n_adapters: int) -> dict[str, int]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.releases import Counting, device, new_publisher

    made = new_publisher(folder)
    for number in range(n_adapters):
        made.publish(name=f"adapter-{number:04}")
    counting = Counting()
    source, found = device(made, folder / "device", fetcher=counting), {}

    def look(what: str) -> None:
        counting.n_bytes = 0
        source.manifest("adapter-0000")
        found[what] = counting.n_bytes

    look("first")
    look("nothing_new")
    made.publish(1, name="another")
    look("another_adapter_is_new")
    newest = max(
        made.store.metadata.glob("*.targets.json"), key=lambda p: int(p.name.split(".")[0])
    )
    found["targets_json"] = newest.stat().st_size
    return found


def measure() -> dict[str, Any]:
    found = {}
    with patch("os.fsync"), tempfile.TemporaryDirectory() as folder:
        for n_adapters in N_ADAPTERS:
            place = Path(folder) / str(n_adapters)
            place.mkdir()
            found[n_adapters] = bytes_of_looks(place, n_adapters)
    least, most = min(N_ADAPTERS), max(N_ADAPTERS)
    grown = found[most]["targets_json"] - found[least]["targets_json"]
    return {
        "bytes": {str(n): sizes for n, sizes in found.items()},
        "targets_json_bytes_for_each_adapter": grown / (most - least),
        "command": "python benchmarks/test_metadata_size.py",
    }


def test_looking_costs_little() -> None:
    result = measure()
    for sizes in result["bytes"].values():
        assert sizes["nothing_new"] < 1000
    assert result["targets_json_bytes_for_each_adapter"] < 300


if __name__ == "__main__":
    measured = measure()
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    print(json.dumps(measured, indent=2))
