"""Memory and time that a language model takes: training, packing with texts, qat.

    python benchmarks/llm_memory.py models/gemma-3-270m

The model is a folder that `save_pretrained` wrote, with its tokenizer. The texts are short
paragraphs of the standard library's docstrings, each with the question which package it is from,
and the answer. Everything is at its defaults but for the number of steps. Each job runs in a
process of its own; memory is the most that it held (VmHWM, so on Linux only), with Python, torch
and the model. Passes run in bfloat16 where the processor multiplies in it, else in float32. A job
that would take more than `--limit-gb` of addresses fails, and the result says so. Seconds include
loading the model. Results lie in `results/llm_memory.json`. With `--before SRC`, the folder `src`
of another checkout, that one is measured, too, and kept beside, on whole texts if it knows no
answers; without it what was kept stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "llm_memory.json"
N_TEXTS, LONGEST_WORDS, N_STEPS, RANK = 120, 24, 4, 8
QUESTION = "Which package of Python's standard library says this? "
JOBS = ("train", "pack", "pack_for_a_size", "qat")
TARGET_BYTES = 256_000


def write_texts(file: Path) -> None:
    """Write questions and answers, and both as one text for checkouts that know no answers."""
    from rankcast.learner.texts import load_docstrings

    data = load_docstrings().train
    assert data.labels is not None
    rows = [
        {"prompt": f"{QUESTION}{text}\nAnswer:", "completion": f" {data.label_names[label]}"}
        for text, label in zip(data.texts, data.labels, strict=True)
        if len(text.split()) <= LONGEST_WORDS
    ]
    chosen = random.Random(0).sample(rows, N_TEXTS)  # noqa: S311 no secret
    lines = (json.dumps(row | {"text": row["prompt"] + row["completion"]}) for row in chosen)
    file.write_text("\n".join(lines) + "\n", "utf-8")


def write_adapter(model: Path, folder: Path) -> None:
    """Write a LoRA of random numbers on all linear maps of the layers, as PEFT does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    settings = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
    adapted = get_peft_model(base, settings)
    weights = {
        name: 0.02 * torch.randn(tensor.shape)
        for name, tensor in adapted.state_dict().items()
        if "lora_" in name
    }
    adapted.save_pretrained(folder, state_dict=weights)


def train(model: Path, texts: Path, **known: Any) -> int:
    """Train some steps at the defaults; return how many."""
    from rankcast.config.learner import DatasetConfig, FinetuneConfig
    from rankcast.learner.datasets import load_dataset
    from rankcast.learner.transformer import TransformerLearner

    config = FinetuneConfig(model=str(model), objective="causal", total_steps=N_STEPS)
    data = DatasetConfig(source=str(texts), label_column=None, **known)
    learner = TransformerLearner(config, load_dataset(data))
    for _ in range(N_STEPS):
        learner.train_step()
    return N_STEPS


def pack(model: Path, texts: Path, adapter: Path, **known: Any) -> int:
    """Pack the adapter with texts; return 1."""
    from rankcast.packaging.pack import pack as pack_adapter
    from rankcast.packaging.texts import Texts

    judges = Texts(texts=str(texts), base_model=str(model), **known)
    pack_adapter(adapter, measure=True, texts=judges)
    return 1


def pack_for_a_size(model: Path, texts: Path, adapter: Path, **known: Any) -> int:
    """Pack the adapter for a size, rounding by curvature included; return 1."""
    from rankcast.packaging.pack import pack as pack_adapter
    from rankcast.packaging.texts import Texts

    judges = Texts(texts=str(texts), base_model=str(model), **known)
    pack_adapter(adapter, target_bytes=TARGET_BYTES, measure=True, texts=judges)
    return 1


def qat(model: Path, texts: Path, adapter: Path, **known: Any) -> int:
    """Train the adapter on rounded weights for some steps; return how many."""
    from rankcast.learner.qat import QatConfig
    from rankcast.packaging.qat import train_on_rounded_weights
    from rankcast.packaging.texts import Texts

    judges = Texts(texts=str(texts), base_model=str(model), **known)
    with tempfile.TemporaryDirectory() as output:
        train_on_rounded_weights(adapter, Path(output), QatConfig(steps=N_STEPS), judges)
    return N_STEPS


def job(name: str, folder: Path) -> None:
    """Do one job in this process and print what it took."""
    import time
    from dataclasses import fields

    import torch

    from rankcast.config.learner import DatasetConfig

    model, texts, adapter = folder / "model", folder / "texts.jsonl", folder / "adapter"
    knows = any(field.name == "prompt_column" for field in fields(DatasetConfig))
    known = {"prompt_column": "prompt", "completion_column": "completion"} if knows else {}
    rest = () if name == "train" else (adapter,)
    start, cpu_start = time.perf_counter(), time.process_time()
    done = {"train": train, "pack": pack, "pack_for_a_size": pack_for_a_size, "qat": qat}[name]
    n_steps = done(model, texts, *rest, **known)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    (line,) = [x for x in status if x.startswith("VmHWM")]
    found = {"peak_bytes": int(line.split()[1]) * 1024, "seconds": seconds, "cpu_seconds": cpu}
    can = torch.cpu.get_capabilities()
    low = any(can.get(name) for name in ("amx_bf16", "avx512_bf16"))
    found["computed_in"] = "bfloat16" if low else "float32"
    print(json.dumps(found | {"steps": n_steps, "answers": knows}))


def measure(source: Path, folder: Path, limit_gb: float) -> dict[str, Any]:
    """Return memory and time of each job with the package in `source`."""
    limit = int(limit_gb * 1e9)
    found = {}
    for name in JOBS:
        done = subprocess.run(  # noqa: S603 our own interpreter
            [sys.executable, __file__, str(folder), "--job", name],
            env=os.environ | {"PYTHONPATH": str(source)},
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit)),
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            found[name] = {"failed": done.stderr.strip().splitlines()[-1][:200]}
        else:
            found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(model: Path, before: Path | None, limit_gb: float) -> Mapping[str, Any]:
    """Measure and keep the result."""
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model").symlink_to(model.resolve())
        write_texts(folder / "texts.jsonl")
        write_adapter(model, folder / "adapter")
        config = json.loads((model / "config.json").read_text("utf-8"))
        result = {
            "model": {name: config.get(name) for name in
                      ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")},
            "texts": N_TEXTS,
            "limit_gb": limit_gb,
            "before": kept.get("before") if before is None else measure(before, folder, limit_gb),
            "after": measure(ROOT / "src", folder, limit_gb),
            "device": f"{platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers")},
            "command": "python benchmarks/llm_memory.py MODEL",
        }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--limit-gb", type=float, default=16.0)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job(given.job, given.model)
    else:
        print(json.dumps(run(given.model, given.before, given.limit_gb), indent=2))
