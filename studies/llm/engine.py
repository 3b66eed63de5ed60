"""Let llama.cpp answer on the quantised base: what a device that has a GGUF and nothing else does.

The engine gives the likeliest next tokens with their probabilities. So an answer is asked for token
by token, each after the prompt and the right tokens before it, which the engine keeps from one
request to the next. Its loss is computed in the engine's own arithmetic.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rankcast.codec.formats.gguf import write_gguf
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.tensors import AdapterTensors
from rankcast.files import put_file
from rankcast.learner.batching import TokenisedDataset
from rankcast.records import FloatArray
from studies.shared.llama_cpp import LlamaServer, llama_server

N_BEST = 1_000
"""Tokens whose probabilities are asked for first; of the others where the right one is not among
them."""


def engine_losses(
    gguf: Path, adapter: AdapterTensors | None, tokens: TokenisedDataset, n_words: int, folder: Path
) -> FloatArray:
    """Return (n,) loss of each answer, summed over its tokens [nats].

    What was answered is kept, so that an interrupted job goes on.

    Args:
        gguf: the base model.
        adapter: what a decoder has; None for the base alone.
        tokens: n texts with answers.
        n_words: of the vocabulary.
        folder: for the adapter's file, the log, and what was answered.

    Raises:
        NotServed: the engine refused the base or the adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "losses.json"
    losses: list[float] = json.loads(kept.read_text("utf-8")) if kept.is_file() else []
    if len(losses) == len(tokens):
        return np.array(losses)
    adapters = []
    if adapter is not None:
        file = folder / "adapter.gguf"
        adapters = [write_gguf(adapter, file, GgufArchitecture.of_gguf(gguf))]
    longest = int(tokens.lengths.max())
    with llama_server(gguf, adapters, log=folder / "log.txt", n_ctx=longest + 8) as server:
        for place in range(len(losses), len(tokens)):
            losses.append(_loss(server, tokens, place, n_words))
            if len(losses) % 10 == 0 or len(losses) == len(tokens):
                put_file(kept, json.dumps(losses).encode())
    return np.array(losses)


def _loss(server: LlamaServer, tokens: TokenisedDataset, place: int, n_words: int) -> float:
    """Return the loss of one answer [nats]."""
    assert tokens.is_answer is not None
    ids = tokens.tokens[place].tolist()
    asked = [i for i in np.flatnonzero(tokens.is_answer[place]).tolist() if i]
    whole = ids[asked[0]]  # the first word of an answer, which is a whole text
    return -sum(_log_probability(server, ids[:i], ids[i], n_words, whole) for i in asked)


def _log_probability(
    server: LlamaServer, before: list[int], token: int, n_words: int, whole: int
) -> float:
    """Return the logarithm of a token's probability after others.

    Args:
        server: the engine.
        before: tokens up to here.
        token: whose probability is asked for.
        n_words: of the vocabulary.
        whole: a token that is a whole text, which the engine says.
    """
    for n_best in (min(N_BEST, n_words), n_words):
        found = server.log_probabilities(before, n_words, n_best=n_best, keep=True, say=whole)
        if np.isfinite(found[token]):
            break
    return float(found[token])
