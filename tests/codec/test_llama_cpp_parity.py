"""llama.cpp itself, with our adapter on a tiny model, answers as transformers and PEFT do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import rankcast
from helpers.gguf_bases import VOCABULARY, tiny_causal_model, write_base
from helpers.llama_cpp import NotServed, llama_server, needs_llama_cpp
from rankcast.codec.container import Container
from rankcast.codec.formats.gguf import read_base_config, write_gguf
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.packaging.export import export

KINDS = (
    "llama", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt2", "mistral", "granite", "smollm3",
    "bloom", "gpt_neox", "falcon", "arcee", "cohere", "gemma2", "olmo", "olmo2", "seed_oss",
    "starcoder2",
)  # fmt: skip
PROMPTS = np.random.default_rng(0).integers(3, VOCABULARY, (3, 12)).tolist()
ROUNDING = 2e-5
"""Kullback-Leibler divergence of two computations of the same model in single precision [nats];
1e-6 and less as measured."""


@pytest.fixture(autouse=True)
def _llama_cpp() -> None:
    needs_llama_cpp()


def trained(model: Any, std: float = 0.15) -> Any:
    """Return a model with an adapter on all maps of its layers: other ranks in one layer, and
    scales that are not 1."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=3, lora_alpha=9, rank_pattern={r".*\.1\..*": 5}, alpha_pattern={r".*\.0\..*": 4},
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
    return adapted.eval()


def answers(model: Any, prompts: list[list[int]] = PROMPTS) -> list[NDArray[np.float64]]:
    """Return the logarithms of the probabilities of the next token after each prompt."""
    with torch.no_grad():
        logits = model(torch.tensor(prompts)).logits[:, -1].double()
    return list(torch.log_softmax(logits, -1).numpy())


def served(base: Path, adapters: list[Path], log: Path) -> list[NDArray[np.float64]]:
    """Return the same of llama.cpp."""
    with llama_server(base, adapters, log=log) as server:
        return [server.log_probabilities(prompt, VOCABULARY) for prompt in PROMPTS]


def divergences(of: list[NDArray[np.float64]], to: list[NDArray[np.float64]]) -> list[float]:
    """Return the Kullback-Leibler divergence after each prompt [nats]."""
    return [float((np.exp(p) * (p - q)).sum()) for p, q in zip(of, to, strict=True)]


def packed(kind: str, folder: Path) -> tuple[Any, Container]:
    """Save a model and an adapter for it; return the model and the packed adapter."""
    model = tiny_causal_model(kind)
    model.save_pretrained(folder / "base")
    trained(tiny_causal_model(kind)).save_pretrained(folder / "lora")
    return model, rankcast.pack(folder / "lora")


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_with_the_adapter_as_peft_does(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model, container = packed(kind, tmp_path)
    base = write_base(model, tmp_path / "base.gguf")
    of_gguf = GgufArchitecture.of_gguf(base)
    assert GgufArchitecture.of_config(read_base_config(tmp_path / "base")) == of_gguf
    export(container, "gguf", tmp_path / "lora.gguf", base_model=tmp_path / "base")
    container.export("gguf", tmp_path / "same.gguf", base_gguf=base)
    assert (tmp_path / "lora.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()

    alone = answers(model)
    container.export("peft", tmp_path / "peft")
    expected = answers(PeftModel.from_pretrained(model, tmp_path / "peft").eval())
    found = served(base, [tmp_path / "lora.gguf"], tmp_path / "log")
    assert max(divergences(expected, found)) < ROUNDING
    assert [p.argmax() for p in found] == [p.argmax() for p in expected]
    assert min(divergences(expected, alone)) > 1000 * ROUNDING  # the adapter changes every answer
    assert max(divergences(alone, served(base, [], tmp_path / "log"))) < ROUNDING


def test_rows_in_the_wrong_order_answer_otherwise(tmp_path: Path) -> None:
    """So that the comparison above would show them."""
    model, container = packed("llama", tmp_path)
    base = write_base(model, tmp_path / "base.gguf")
    right = GgufArchitecture.of_gguf(base)
    wrong = dataclasses.replace(right, interleaved=False)
    paths = [tmp_path / "right.gguf", tmp_path / "wrong.gguf"]
    for path, architecture in zip(paths, (right, wrong), strict=True):
        write_gguf(container.tensors(), path, architecture)
    one, other = (served(base, [path], tmp_path / "log") for path in paths)
    assert min(divergences(one, other)) > 10 * ROUNDING


def test_an_adapter_of_another_architecture_is_refused_by_it(tmp_path: Path) -> None:
    model, container = packed("qwen3", tmp_path)
    base = write_base(model, tmp_path / "base.gguf")
    other = dataclasses.replace(GgufArchitecture.of_gguf(base), name="qwen2")
    path = write_gguf(container.tensors(), tmp_path / "other.gguf", other)
    with pytest.raises(NotServed, match="arch mismatch"):
        served(base, [path], tmp_path / "log")


GEMMA = os.environ.get("RANKCAST_GEMMA_GGUF")
"""File of Gemma 3 270M as Q4_K_M, which is not ours to hand on."""
N_BEST = 2000


def coarse(log_probabilities: NDArray[np.float64], words: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the probabilities of some words, and last that of all others together."""
    some = np.exp(log_probabilities[words])
    return np.append(some, max(1e-9, 1 - some.sum()))


@pytest.mark.skipif(GEMMA is None, reason="RANKCAST_GEMMA_GGUF names no Gemma 3 270M")
def test_gemma_in_four_bits_answers_as_peft_does(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its map is the same but for what the engine rounds on the way, with the adapter as without:
    the divergence of the two engines over the likeliest words at most doubles."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = Path(GEMMA or "").absolute()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    prompts = np.random.default_rng(0).integers(1000, 200_000, (24, 12))
    prompts[:, 0] = 2  # every text of Gemma's begins so
    alone = answers(model, prompts.tolist())
    container = rankcast.pack(trained(model, std=0.02))
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    container.export("peft", tmp_path / "peft")
    container.export("gguf", tmp_path / "lora.gguf", base_gguf=path)
    adapted = answers(PeftModel.from_pretrained(model, tmp_path / "peft").eval(), prompts.tolist())
    means = []
    for expected, adapters in ((alone, []), (adapted, [tmp_path / "lora.gguf"])):
        found = []
        with llama_server(path, adapters, log=tmp_path / "log") as server:
            for prompt, there in zip(prompts.tolist(), expected, strict=True):
                here = server.log_probabilities(prompt, len(there), n_best=N_BEST)
                words = np.flatnonzero(np.isfinite(here))
                p, q = coarse(there, words), coarse(here, words)
                found.append(float((p * np.log(p / q)).sum()))
        means.append(float(np.mean(found)))
    changed = float(np.mean(divergences(adapted, alone)))
    record_property("divergence alone, with the adapter, by it [nats]", [*means, changed])
    assert means[1] < 2 * means[0]
    assert changed > 10 * means[0]
