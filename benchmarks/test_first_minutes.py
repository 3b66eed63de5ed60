"""How long a newcomer's first commands take: an adapter packed, read and got back, and a delivery.

The commands are those of docs/first-pack.md and docs/quickstart.md, as written there. The adapter
is made by PEFT on a small BERT with random weights, which is not counted. `first` are the commands
as they run after installation; `again` is the same once more, when Python has its bytecode.
`python benchmarks/test_first_minutes.py` in an environment with the extras `serve` and `train`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "first_minutes.json"
DOCS = HERE.parent / "docs"
MOST_S = {"first-pack.md": 180.0, "quickstart.md": 60.0}
"""Goals for the commands of each page together [s]."""


def typed(page: str) -> list[str]:
    """Return the commands of a page's first block of shell, without what installs."""
    text = (DOCS / page).read_text("utf-8")
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [line for line in block[1].splitlines() if line.startswith("rankcast ")]


def make_adapter(folder: Path) -> None:
    """Write a LoRA of random weights as PEFT does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    bert = BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    lora = LoraConfig(r=8, target_modules=["query", "value"], init_lora_weights=False)
    get_peft_model(BertForSequenceClassification(bert), lora).save_pretrained(folder)


def timed(words: str, folder: Path, bytecode: Path) -> dict[str, Any]:
    """Run a command as it is typed, and say how long it took."""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    subprocess.run(  # noqa: S603 our own words, no shell
        [sys.executable, "-m", *words.split()], cwd=folder, env=env, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {"typed": words, "seconds": time.perf_counter() - begin}


def measure() -> dict[str, Any]:
    """Type all commands twice, in a new folder each time."""
    found: dict[str, Any] = {"goal_s": MOST_S}
    with tempfile.TemporaryDirectory() as name:
        for turn in ("first", "again"):
            folder = Path(name) / turn
            folder.mkdir()
            make_adapter(folder / "my-adapter")
            pages = {
                page: [timed(words, folder, Path(name) / "bytecode") for words in typed(page)]
                for page in MOST_S
            }
            found[turn] = {
                page: {"commands": rows, "seconds": sum(row["seconds"] for row in rows)}
                for page, rows in pages.items()
            }
    return found


def test_the_first_minutes_are_few() -> None:
    first = measure()["first"]
    assert all(first[page]["commands"] for page in MOST_S)
    assert all(first[page]["seconds"] < most for page, most in MOST_S.items())


if __name__ == "__main__":
    from rankcast.files import replace_file

    load = os.getloadavg()[0]
    result = {
        **measure(),
        "machine": f"{os.cpu_count()} cores ({platform.machine()}); load average {load:.1f} before",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("peft", "transformers", "numpy")},
        },
        "command": "python benchmarks/test_first_minutes.py",
    }
    replace_file(
        RESULTS, lambda file: file.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    )
    print(json.dumps(result, indent=2))
