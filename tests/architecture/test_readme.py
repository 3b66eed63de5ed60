"""The README: what it shows of packing works as it stands, and its picture is as it is drawn."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from helpers.commands import Call

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PACKING = re.compile(r"^## Pack your own adapter\n(.*?)^## ", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def my_adapter(tmp_path: Path) -> Path:
    """Save a LoRA where the README has one, and return the folder that it lies in."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    bert = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    lora = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(BertForSequenceClassification(bert), lora)
    model.save_pretrained(tmp_path / "my-adapter")
    return tmp_path


def test_packing_works_as_shown(
    my_adapter: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(my_adapter)
    [shown] = PACKING.findall(README.read_text("utf-8"))
    blocks = dict(BLOCK.findall(shown))
    assert set(blocks) == {"python", "sh"}
    exec(compile(blocks["python"], str(README), "exec"), {})  # noqa: S102 - our own document
    for line in blocks["sh"].splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "rankcast"
        call.ok(*words)
    for folder in ("first-chunk", "received"):
        assert (Path("adapters") / folder / "adapter_model.safetensors").exists()


def test_the_picture_is_as_it_is_drawn() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "tools" / "draw_system.py"))
    for name, colours in script["PICTURES"].items():
        drawn = (ROOT / "docs" / "images" / name).read_text("utf-8")
        assert drawn == script["draw"](colours), f"python docs/tools/draw_system.py writes {name}"
