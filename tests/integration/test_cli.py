from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import call
from rankcast.cli import main, parse_overrides
from rankcast.errors import ConfigError
from rankcast.run.signals import stop_on_signal
from small_runs import SMALL

TINY = [x for key, value in SMALL.items() for x in (f"--{key.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "tiny", *TINY, "--output", str(folder)])
    assert stopped.value.code == 0
    return folder


def test_help_is_quick_to_answer_and_needs_no_torch() -> None:
    code = (
        "import sys\nfrom rankcast.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: status = stop.code\n"
        "print(status, sorted({'torch', 'numpy', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "rankcast demo" in done.stdout


@pytest.mark.parametrize("command", ["train", "demo", "allocate", "evaluate", "export"])
def test_the_help_of_each_command_has_an_example(command: str, capsys: Any) -> None:
    status, out, _ = call(command, "--help", capsys=capsys)
    assert status == 0
    assert f"rankcast {command}" in out.partition("\n")[2]


def test_presets_are_listed(capsys: Any) -> None:
    status, out, _ = call("presets", capsys=capsys)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "demo",
        "paper",
        "sst2-minilm",
        "tiny",
    ]


def test_a_preset_prints_all_its_settings(tmp_path: Path, capsys: Any) -> None:
    status, out, _ = call("presets", "paper", capsys=capsys)
    assert status == 0
    (tmp_path / "copy.yaml").write_text(out)
    assert call("presets", str(tmp_path / "copy.yaml"), capsys=capsys)[1] == out


def test_overrides_in_both_spellings() -> None:
    found = parse_overrides(["--link.snr-db", "-5", "--data.source=a=b"])
    assert found == {"link.snr_db": "-5", "data.source": "a=b"}
    with pytest.raises(ConfigError, match="needs a value"):
        parse_overrides(["--steps"])
    with pytest.raises(ConfigError, match="belongs to no option"):
        parse_overrides(["steps"])


def test_training_prints_a_table_or_json(trained: Path, tmp_path: Path, capsys: Any) -> None:
    status, out, err = call(
        "train", "tiny", *TINY, "--steps", "3", "--json", "--output", str(tmp_path), capsys=capsys
    )
    assert status == 0
    assert json.loads(out)["steps"] == 3
    assert "3/3" in err
    assert json.loads((tmp_path / "result.json").read_text())["command"].startswith(
        "rankcast train"
    )
    status, out, _ = call("train", str(trained / "config.yaml"), "--resume", capsys=capsys)
    assert status == 0
    assert "after 12 steps" in out
    assert str(trained) in out


def test_allocate_answers_from_the_policy_alone(trained: Path, capsys: Any) -> None:
    args = ("allocate", "--run", str(trained), "--snr-db", "-5")
    status, out, _ = call(
        *args, "--bandwidth-hz", "6e4", "--deadline-s", "2", "--json", capsys=capsys
    )
    plan = json.loads(out)
    assert status == 0
    rate = 6e4 * np.log2(1 + 10**-0.5)
    assert plan["rate_bps"] == pytest.approx(rate)
    assert plan["transmission_time_s"] == pytest.approx(plan["payload_bits"] / rate)
    assert plan["link_cost"] == pytest.approx(plan["transmission_time_s"] / 2)
    assert plan["arrives"]
    assert len(plan["ranks"]) == 12
    assert plan["mean_rank"] == pytest.approx(np.mean(list(plan["ranks"].values())))
    status, out, _ = call(*args, capsys=capsys)
    assert status == 0
    assert "-5 dB, 0.1 MHz, 1 s" in out
    assert "fc1" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--snr-db": "nan"}, "SNR must be a finite number"),
        ({"--snr-db": "inf"}, "SNR must be a finite number"),
        ({"--snr-db": "400"}, "within ±300"),
        ({"--bandwidth-hz": "0"}, "bandwidth must be a positive number of Hz"),
        ({"--bandwidth-hz": "-1"}, "bandwidth must be a positive number of Hz"),
        ({"--bandwidth-hz": "nan"}, "bandwidth must be a positive number of Hz"),
        ({"--deadline-s": "0"}, "deadline must be a positive number of seconds"),
        ({"--deadline-s": "-2"}, "deadline must be a positive number of seconds"),
        ({"--deadline-s": "inf"}, "deadline must be a positive number of seconds"),
        ({"--run": "nowhere"}, "nowhere holds no run"),
        ({"--speed": "3"}, "has no option --speed"),
    ],
)
def test_bad_links_are_one_clear_line(
    trained: Path, changes: dict[str, str], message: str, capsys: Any
) -> None:
    options = {"--run": str(trained), "--snr-db": "5"} | changes
    status, out, err = call("allocate", *(x for kv in options.items() for x in kv), capsys=capsys)
    assert status == 2
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("rankcast: ")


def test_debug_shows_the_traceback(trained: Path, capsys: Any) -> None:
    args = ("allocate", "--run", str(trained), "--snr-db", "nan", "--debug")
    status, _, err = call(*args, capsys=capsys)
    assert status == 2
    assert "Traceback" in err


def test_an_infeasible_deadline_says_by_how_much(tmp_path: Path, capsys: Any) -> None:
    link = ("--link.min-rank", "1", "--link.deadline-s", "0.001", "--output", str(tmp_path / "x"))
    status, _, err = call("train", "tiny", *TINY, *link, capsys=capsys)
    assert status == 2
    assert "short by" in err
    assert not (tmp_path / "x").exists()


def test_evaluate_compares_and_draws(trained: Path, capsys: Any) -> None:
    status, out, _ = call("evaluate", "--run", str(trained), "--json", capsys=capsys)
    assert status == 0
    found = json.loads(out)
    assert found == json.loads((trained / "comparison.json").read_text())
    assert len(found["rows"]) == 20
    assert {row["allocator"] for row in found["rows"]} == {"AirLLM", "uniform", "random", "solver"}
    for row in found["rows"]:
        assert row["link_cost"] <= 1
        assert row["transmission_time_s"] == pytest.approx(row["link_cost"])  # deadline of 1 s
    whole = found["differences_of_airllm"][-1]
    assert whole["low"] <= whole["difference"] <= whole["high"]
    for picture in ("ranks.png", "learning.png"):
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")
    # The result of training judged the same plans on the same texts.
    result = json.loads((trained / "result.json").read_text())
    ours = [row for row in found["rows"] if row["allocator"] == "AirLLM"]
    assert [r["accuracy"] for r in ours] == [r["test_accuracy"] for r in result["links"]]


def test_demo_trains_compares_and_draws(tmp_path: Path, capsys: Any) -> None:
    tiny_model = ("--finetune.model", "tiny", "--finetune.max-length", "32", "--steps", "3")
    args = ("demo", *TINY, *tiny_model, "--output", str(tmp_path / "demo"))
    status, out, err = call(*args, capsys=capsys)
    assert status == 0
    assert "AirLLM against uniform ranks" in out
    assert "solver" in out
    assert "3/3" in err
    assert (tmp_path / "demo" / "ranks.png").exists()
    status, _, err = call(*args, capsys=capsys)
    assert status == 2
    assert "already holds a run" in err


def test_export_is_a_lora_that_peft_reads(trained: Path, tmp_path: Path, capsys: Any) -> None:
    args = ("export", "--run", str(trained), "--snr-db", "5", "--output", str(tmp_path / "lora"))
    status, out, _ = call(*args, capsys=capsys)
    assert status == 0
    assert "plain LoRA" in out
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("label,sentence\n0,a b\n1,c d\n", "has no column 'text'"),
        ("label,text\n0,a b\n1,\n", "texts are empty"),
        ("label,text\n" + "".join(f"0,text {i}\n" for i in range(20)), "at least two classes"),
    ],
)
def test_data_that_cannot_be_learned_from(
    tmp_path: Path, table: str, message: str, capsys: Any
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(table)
    args = ("--data.source", str(tmp_path / "data"), "--output", str(tmp_path / "run"))
    status, _, err = call("train", "tiny", *args, capsys=capsys)
    assert status == 2
    assert message in err
    assert [line for line in err.splitlines() if line.startswith("rankcast: ")] == err.splitlines()[
        1:
    ]
    assert not (tmp_path / "run").exists()


def test_a_label_that_training_never_had(tmp_path: Path, capsys: Any) -> None:
    rows = "".join(f"{i % 2},word number {i}\n" for i in range(40))
    (tmp_path / "train.csv").write_text("label,text\n" + rows)
    (tmp_path / "test.csv").write_text("label,text\n7,a b\n")
    args = ("--data.source", str(tmp_path), "--output", str(tmp_path / "run"))
    status, _, err = call("train", "tiny", *args, capsys=capsys)
    assert status == 2
    assert "7" in err
    assert "test.csv" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tinny",), "did you mean 'tiny'"),
        (("tiny", "--finetune.lrr", "1"), "did you mean 'finetune.lr'"),
        (("tiny", "--lr", "1"), "did you mean finetune.lr"),
        (("tiny", "--finetune.lr", "fast"), "finetune.lr must be a number"),
        (("tiny", "--finetune.model", "./no/such/model"), "Cannot load the base model"),
        (("tiny", "--finetune.kinds", "nonsense"), "nonsense"),
        (("tiny", "--data.source", "./nothing-here"), "There is no file or folder"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, args: tuple[str, ...], message: str, capsys: Any
) -> None:
    status, _, err = call("train", *args, "--output", str(tmp_path / "run"), capsys=capsys)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_a_model_without_linear_projections(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from torch import nn

    from rankcast.finetune import base_models

    monkeypatch.setattr(base_models, "_build", lambda *_: nn.Sequential(nn.Embedding(5, 4)))
    monkeypatch.setattr(base_models, "_head", lambda *_: ())
    status, _, err = call("train", "tiny", *TINY, "--output", str(tmp_path / "run"), capsys=capsys)
    assert status == 2
    assert "projection" in err
    assert "Traceback" not in err


def test_checkpoints_of_another_run_and_truncated_ones(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    again = ("train", str(trained / "config.yaml"), "--resume")
    status, _, err = call(*again, "--finetune.model", "minilm", capsys=capsys)
    assert status == 2
    assert "finetune.model was 'tiny' and is now 'minilm'" in err
    for name in ("config.yaml", "checkpoint.pt", "policy.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    for name in ("checkpoint.pt", "policy.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes()[:1000])
    status, _, err = call("evaluate", "--run", str(tmp_path), capsys=capsys)
    assert status == 2
    assert "checkpoint.pt is truncated" in err
    status, _, err = call("allocate", "--run", str(tmp_path), "--snr-db", "5", capsys=capsys)
    assert status == 2
    assert "policy.pt is truncated" in err


def test_a_policy_of_another_configuration_is_refused(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    text = (trained / "config.yaml").read_text()
    (tmp_path / "policy.pt").write_bytes((trained / "policy.pt").read_bytes())
    (tmp_path / "config.yaml").write_text(text.replace("  hidden: 16", "  hidden: 24"))
    status, _, err = call("allocate", "--run", str(tmp_path), "--snr-db", "5", capsys=capsys)
    assert status == 2
    assert "another configuration" in err


def test_the_first_signal_asks_and_the_second_interrupts(capsys: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping after this episode" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from rankcast.run.recording import RecordingEnv

    original = RecordingEnv.step

    def step(self: Any, actions: Any) -> Any:
        if self.n_steps == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, actions)

    monkeypatch.setattr(RecordingEnv, "step", step)
    args = ("train", "tiny", *TINY, "--output", str(tmp_path / "run"))
    status, out, err = call(*args, capsys=capsys)
    assert status == 130
    assert not out
    assert "stopped after step 6" in err
    assert f"rankcast train {tmp_path / 'run' / 'config.yaml'} --resume" in err
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    status, out, _ = call("train", str(tmp_path / "run" / "config.yaml"), "--resume", capsys=capsys)
    assert status == 0
    assert "after 12 steps" in out
