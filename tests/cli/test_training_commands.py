from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.commands import TINY, Call, fresh_python
from rankcast.cli.common import stop_on_signal
from rankcast.config.plain import setting_names, to_plain
from rankcast.presets import load_preset


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\nfrom rankcast.cli.main import main\n"
        "for words in ([], ['train', 'tiny'], ['edge', 'sync']):\n"
        "    try: main([*words, '--help'])\n    except SystemExit as stop: print(stop.code)\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    done = fresh_python(code)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("usage: rankcast ") == 3


def test_the_help_of_train_shows_every_setting_as_the_preset_has_it(call: Call) -> None:
    out = call.ok("train", "tiny", "--help")
    shown = set(re.findall(r"^  (?:-o STR, )?--([a-z][\w.-]+)", out, re.MULTILINE))
    settings = {name.replace("_", "-") for name in setting_names(to_plain(load_preset("tiny")))}
    assert settings - shown == set()
    assert shown - settings == {"resume", "overwrite", "json"}
    folder = out.partition("--output STR")[2].partition("data options")[0]
    assert "(default: runs/tiny)" in folder


def test_presets_are_listed(call: Call) -> None:
    out = call.ok("presets")
    assert [line.split()[0] for line in out.splitlines()] == [
        "demo",
        "gemma3-270m",
        "llama-1b",
        "paper",
        "qwen3-0.6b",
        "sst2-minilm",
        "tiny",
    ]


def test_a_preset_prints_all_its_settings(tmp_path: Path, call: Call) -> None:
    out = call.ok("presets", "paper")
    (tmp_path / "copy.yaml").write_text(out)
    assert call.ok("presets", str(tmp_path / "copy.yaml")) == out


def test_training_prints_a_table_or_json(trained: Path, tmp_path: Path, call: Call) -> None:
    status, out, err = call("train", *TINY, "--steps", "3", "--json", "--output", str(tmp_path))
    assert status == 0
    assert json.loads(out)["steps"] == 3
    assert "3/3" in err
    assert json.loads((tmp_path / "result.json").read_text())["command"].startswith(
        "rankcast train"
    )
    out = call.ok("train", str(trained / "config.yaml"), "--resume")
    assert "after 12 steps" in out
    assert str(trained) in out


def test_allocate_answers_from_the_policy_alone(trained: Path, call: Call) -> None:
    args = ("allocate", "--run", str(trained), "--snr-db", "-5")
    plan = json.loads(call.ok(*args, "--bandwidth-hz", "6e4", "--deadline-s", "2", "--json"))
    rate = 6e4 * np.log2(1 + 10**-0.5)
    assert plan["rate_bps"] == pytest.approx(rate)
    assert plan["transmission_time_s"] == pytest.approx(plan["payload_bits"] / rate)
    assert plan["link_cost"] == pytest.approx(plan["transmission_time_s"] / 2)
    assert plan["arrives"]
    assert len(plan["ranks"]) == 12
    assert plan["mean_rank"] == pytest.approx(np.mean(list(plan["ranks"].values())))
    out = call.ok(*args)
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
    trained: Path, changes: dict[str, str], message: str, call: Call
) -> None:
    options = {"--run": str(trained), "--snr-db": "5"} | changes
    status, out, err = call("allocate", *(x for kv in options.items() for x in kv))
    assert status == 2
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("rankcast: ")


def test_debug_shows_the_traceback(trained: Path, call: Call) -> None:
    args = ("allocate", "--run", str(trained), "--snr-db", "nan", "--debug")
    err = call.refused(*args)
    assert "Traceback" in err


def test_an_infeasible_deadline_says_by_how_much(tmp_path: Path, call: Call) -> None:
    link = ("--link.min-rank", "1", "--link.deadline-s", "0.001", "--output", str(tmp_path / "x"))
    err = call.refused("train", *TINY, *link)
    assert "short by" in err
    assert not (tmp_path / "x").exists()


def test_evaluate_compares_and_draws(trained: Path, call: Call) -> None:
    out = call.ok("evaluate", "--run", str(trained), "--json")
    report = json.loads(out)
    assert report == json.loads((trained / "comparison.json").read_text())
    assert len(report["rows"]) == 20
    assert {row["allocator"] for row in report["rows"]} == {"AirLLM", "uniform", "random", "solver"}
    for row in report["rows"]:
        assert row["link_cost"] <= 1
        assert row["transmission_time_s"] == pytest.approx(row["link_cost"])  # deadline of 1 s
    whole = report["differences_of_airllm"][-1]
    assert whole["low"] <= whole["difference"] <= whole["high"]
    for picture in ("ranks.png", "learning.png"):
        assert (trained / picture).read_bytes().startswith(b"\x89PNG")
    # The result of training judged the same plans on the same texts.
    result = json.loads((trained / "result.json").read_text())
    ours = [row for row in report["rows"] if row["allocator"] == "AirLLM"]
    assert [r["accuracy"] for r in ours] == [r["test_accuracy"] for r in result["links"]]


def test_an_allocator_of_ones_own_plans_and_is_compared(
    trained: Path, tmp_path: Path, monkeypatch: Any, call: Call
) -> None:
    (tmp_path / "flat_allocator.py").write_text(
        "import numpy as np\n"
        "class Flat:\n"
        "    name = 'flat'\n"
        "    def __init__(self, problem):\n"
        "        self.problem = problem\n"
        "    def allocate(self, observation, rng):\n"
        "        ranks = np.full((1, self.problem.layout.n_projections), 1)\n"
        "        return self.problem.feasible(ranks, observation.link)\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ("--run", str(trained), "--allocator", "flat_allocator:Flat")
    out = call.ok("allocate", *own, "--snr-db", "15", "--json")
    assert set(json.loads(out)["ranks"].values()) == {1}
    out = call.ok("evaluate", *own, "--json")
    rows = json.loads(out)["rows"]
    names = [row["allocator"] for row in rows[:5]]
    assert names == ["AirLLM", "uniform", "random", "solver", "flat"]
    assert rows[-1]["ranks"] == [1] * 12
    status, out, err = call("evaluate", "--run", str(trained), "--allocator", "x:Y")
    assert (status, out) == (2, "")
    assert "no module 'x'" in err


def test_demo_trains_compares_and_draws(tmp_path: Path, call: Call) -> None:
    tiny_model = ("--finetune.model", "tiny", "--finetune.max-length", "32", "--steps", "3")
    args = ("demo", *TINY[1:], *tiny_model, "--output", str(tmp_path / "demo"))
    status, out, err = call(*args)
    assert status == 0
    assert "AirLLM against uniform ranks" in out
    assert "solver" in out
    assert "3/3" in err
    assert (tmp_path / "demo" / "ranks.png").exists()
    err = call.refused(*args)
    assert "already holds a run" in err


def test_export_is_a_lora_that_peft_reads(trained: Path, tmp_path: Path, call: Call) -> None:
    args = ("export", "--run", str(trained), "--snr-db", "5", "--output", str(tmp_path / "lora"))
    out = call.ok(*args)
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
    tmp_path: Path, table: str, message: str, call: Call
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text(table)
    args = ("--data.source", str(tmp_path / "data"), "--output", str(tmp_path / "run"))
    err = call.refused("train", "tiny", *args)
    assert message in err
    assert [line for line in err.splitlines() if line.startswith("rankcast: ")] == err.splitlines()[
        1:
    ]
    assert not (tmp_path / "run").exists()


def test_a_label_that_training_never_had(tmp_path: Path, call: Call) -> None:
    rows = "".join(f"{i % 2},word number {i}\n" for i in range(40))
    (tmp_path / "train.csv").write_text("label,text\n" + rows)
    (tmp_path / "test.csv").write_text("label,text\n7,a b\n")
    args = ("--data.source", str(tmp_path), "--output", str(tmp_path / "run"))
    err = call.refused("train", "tiny", *args)
    assert "7" in err
    assert "test.csv" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tinny",), "did you mean 'tiny'"),
        (("tiny", "--finetune.lrr", "1"), "did you mean '--finetune.lr'"),
        (("tiny", "--lr", "1"), "did you mean --codec.lr or --finetune.lr"),
        (("tiny", "--finetune.lr", "fast"), "--finetune.lr: could not convert"),
        (("tiny", "--finetune.lr", "0"), "lr must be positive"),
        (("tiny", "--tensorboard", "maybe"), "true or false is wanted"),
        (("tiny", "--finetune.model", "./no/such/model"), "Cannot load the base model"),
        (("tiny", "--finetune.kinds", "nonsense"), "nonsense"),
        (("tiny", "--data.source", "./nothing-here"), "There is no file or folder"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, args: tuple[str, ...], message: str, call: Call
) -> None:
    err = call.refused("train", *args, "--output", str(tmp_path / "run"))
    assert message in err
    assert "Traceback" not in err


def test_a_model_without_linear_projections(tmp_path: Path, monkeypatch: Any, call: Call) -> None:
    from torch import nn

    from rankcast.learner import base_models

    monkeypatch.setattr(base_models, "_build", lambda *_: nn.Sequential(nn.Embedding(5, 4)))
    monkeypatch.setattr(base_models, "_head", lambda *_: ())
    err = call.refused("train", *TINY, "--output", str(tmp_path / "run"))
    assert "projection" in err
    assert "Traceback" not in err


def test_checkpoints_of_another_run_and_truncated_ones(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    again = ("train", str(trained / "config.yaml"), "--resume")
    err = call.refused(*again, "--finetune.model", "minilm")
    assert "finetune.model was 'tiny' and is now 'minilm'" in err
    for name in ("config.yaml", "checkpoint.pt", "policy.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    for name in ("checkpoint.pt", "policy.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes()[:1000])
    err = call.refused("evaluate", "--run", str(tmp_path))
    assert "checkpoint.pt is truncated" in err
    err = call.refused("allocate", "--run", str(tmp_path), "--snr-db", "5")
    assert "policy.pt is truncated" in err


def test_a_policy_of_another_configuration_is_refused(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    text = (trained / "config.yaml").read_text()
    (tmp_path / "policy.pt").write_bytes((trained / "policy.pt").read_bytes())
    (tmp_path / "config.yaml").write_text(text.replace("  hidden: 16", "  hidden: 24"))
    err = call.refused("allocate", "--run", str(tmp_path), "--snr-db", "5")
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


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: Any, call: Call) -> None:
    from rankcast.env.mdp import AllocationMdp

    original = AllocationMdp.step

    def step(self: Any, ranks: Any) -> Any:
        if self.learner.n_steps == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, ranks)

    monkeypatch.setattr(AllocationMdp, "step", step)
    args = ("train", *TINY, "--output", str(tmp_path / "run"))
    status, out, err = call(*args)
    assert status == 130
    assert not out
    assert "stopped after step 6" in err
    assert f"rankcast train {tmp_path / 'run' / 'config.yaml'} --resume" in err
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    out = call.ok("train", str(tmp_path / "run" / "config.yaml"), "--resume")
    assert "after 12 steps" in out
