"""Which base model `rankcast quickstart` takes for an adapter of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import Call
from rankcast.simulation.made_up import write_adapter, write_base_model


def test_the_folder_that_the_adapter_names_is_taken(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_base_model(tmp_path / "made-up", 0)
    write_adapter(tmp_path / "lora", 1)
    words = ("quickstart", "lora", "--port", "0", "--by-hand")
    script = call.ok(*words, "--folder", "q")
    assert script.count(f"--base-model {tmp_path / 'made-up'}") == 4  # two packs, two syncs
    config = tmp_path / "lora" / "adapter_config.json"
    plain = json.loads(config.read_text())
    for name, said in (("else/where", "is of else/where"), (None, "a model that it does not name")):
        config.write_text(json.dumps(plain | {"base_model_name_or_path": name}))
        err = call.refused(*words, "--folder", "r")
        assert said in err
        assert "--base-model" in err
    assert not (tmp_path / "r").exists()
