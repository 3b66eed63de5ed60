"""Collect a finished and evaluated `sst2-minilm` run into result.json, and make its tables.

python studies/sst2_minilm/render.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rankcast.files import replace_file

HERE = Path(__file__).parent
COMMAND = (
    "rankcast train sst2-minilm --data.source SST2 --training.teacher-share 0; rankcast evaluate"
)


def collect(run: Path) -> dict[str, Any]:
    """Write result.json: the run's own result, the comparison, and the learning curve."""
    result = json.loads((run / "result.json").read_text())
    result["config"]["data"]["source"] = "SST2"  # a folder of the GLUE tables as TSV
    result["config"]["output"] = "runs/sst2-minilm"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    collected = result | {
        "command": COMMAND,
        "comparison": json.loads((run / "comparison.json").read_text()),
        "evaluations": [row for row in log if row.get("kind") == "evaluation"],
    }
    text = json.dumps(collected, indent=1) + "\n"
    replace_file(HERE / "result.json", lambda partial: partial.write_text(text))
    return collected


def read() -> dict[str, Any]:
    """Return the committed result."""
    return json.loads((HERE / "result.json").read_text("utf-8"))


def render(result: dict[str, Any] | None = None) -> str:
    """Return the table of accuracies: links × allocators."""
    if result is None:
        result = read()
    validation = {row["snr_db"]: row["validation_accuracy"] for row in result["links"]}
    cells = {(row["snr_db"], row["allocator"]): row for row in result["comparison"]["rows"]}
    names = list(dict.fromkeys(row["allocator"] for row in result["comparison"]["rows"]))
    heads = [f"{name}: test accuracy (Mbit)" for name in names]
    lines = [
        f"| SNR | AirLLM: validation | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for snr_db, accuracy in validation.items():
        row = [f"{snr_db:g} dB", f"{accuracy:.1%}"]
        for name in names:
            cell = cells[snr_db, name]
            row.append(f"{cell['accuracy']:.1%} ({cell['payload_bits'] / 1e6:.2f})")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def differences(result: dict[str, Any]) -> str:
    """Return the paired differences as a table."""
    lines = [
        "| link | AirLLM minus | points | 95 % interval | McNemar p |",
        "|---|---|---|---|---|",
    ]
    for row in result["comparison"]["differences_of_airllm"]:
        link = "all" if row["snr_db"] is None else f"{row['snr_db']:g} dB"
        p = "–" if row["p_value"] is None else f"{row['p_value']:.3f}"
        lines.append(
            f"| {link} | {row['other']} | {100 * row['difference']:+.1f} | "
            f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f} | {p} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Collect and fill README.md."""
    result = collect(Path(sys.argv[1]))
    readme = HERE / "README.md"
    text = readme.read_text()
    blocks = {"results:sst2_minilm": render(result), "differences": differences(result)}
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name.partition(':')[0]} -->"
        head, rest = text.split(start)
        text = f"{head}{start}\n\n{block}\n\n{end}{rest.split(end)[1]}"
        print(block, end="\n\n")
    readme.write_text(text)


if __name__ == "__main__":
    main()
