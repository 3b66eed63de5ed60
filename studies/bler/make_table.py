"""Write the table that comes with rankcast from this study's results.

python -m studies.bler.make_table
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankcast.files import replace_file
from studies.harness.store import command_for

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
        f"studies/bler/result.json: {command_for('bler', 'default')}; TS 38.212 LDPC through "
        f"Sionna {versions['sionna-no-rt']}, torch {versions['torch']}; AWGN, ideal receiver"
    )
    return {"source": source, "schemes": schemes}


if __name__ == "__main__":
    content = table(json.loads((HERE / "result.json").read_text("utf-8")))
    text = json.dumps(content, indent=1) + "\n"
    replace_file(TABLE, lambda path: path.write_text(text, "utf-8"))
    print(f"{TABLE}: {len(content['schemes'])} schemes")
