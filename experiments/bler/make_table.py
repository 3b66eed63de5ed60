"""Write the table that comes with rankcast from this experiment's results.

python experiments/bler/make_table.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankcast.files import replace_file

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "src" / "rankcast" / "link" / "nr_bler.json"


def table(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `rankcast.link.bler.BlerTable.from_plain` reads; counts stay behind."""
    rows = result["rows"]
    schemes = []
    for row in rows:
        settings = row["settings"]
        waterfalls = [
            {name: value for name, value in curve.items() if name != "counts"}
            for curve in row["values"]["waterfalls"]
        ]
        schemes.append(
            {
                "bits_per_symbol": settings["bits_per_symbol"],
                "rate_x1024": settings["rate_x1024"],
                "waterfalls": waterfalls,
            }
        )
    versions = rows[0]["versions"]
    source = (
        f"experiments/bler/result.json: {result['command']}; TS 38.212 LDPC through Sionna "
        f"{versions['sionna-no-rt']}, torch {versions['torch']}; AWGN, ideal receiver"
    )
    return {"source": source, "schemes": schemes}


if __name__ == "__main__":
    found = table(json.loads((HERE / "result.json").read_text("utf-8")))
    text = json.dumps(found, indent=1) + "\n"
    replace_file(TABLE, lambda path: path.write_text(text, "utf-8"))
    print(f"{TABLE}: {len(found['schemes'])} schemes")
