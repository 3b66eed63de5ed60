"""Record what an adapter changes on its base model, so that devices can prove that it is active."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.container import Container
from rankcast.codec.formats.peft import write_peft
from rankcast.packaging.base_model import Adapted, explained, load_base
from rankcast.release.proof import Probe, ProbeAnswers, Proof, change

_N_CANDIDATES, _N_PROBES = 16, 4
_N_IDS = 12
"""Of a prompt."""
_N_TOKENS = 5
"""Most likely next tokens of the base model, and as many of the adapter, that count."""
_MOST_PREFIXES = 16
"""Of a file that are recorded."""
_DIGITS = 3
LEAST_CHANGE = 0.02
"""Distance between square roots of probabilities over all probes; less is hardly measurable."""
_SEED = 20_250_701


def make_proof(containers: Sequence[Container], base_model: Path) -> Proof | None:
    """Return the proof of a release; None where there is nothing to measure.

    Prompts are drawn at random, and those kept where the first file changes the most. The base
    model is loaded once, in its own precision.

    Args:
        containers: the files of the release, whole.
        base_model: folder of the base model.

    Returns:
        None for an adapter of another task than causal language modelling, and for one that changes
        no next token by a measurable amount.

    Raises:
        ConfigError: no model in the folder that can be loaded.
        ModelError: another base model than the adapter was made for.
    """
    from rankcast.adapters.fingerprint import check_base  # noqa: PLC0415 needs torch

    first = containers[0]
    if first.header.task.get("task_type") != "CAUSAL_LM":
        return None
    model = load_base(base_model, Adapted.of(first.header))
    check_base(model, first.header.base.fingerprint, first.header.base.name)
    prompts = _prompts(model)
    before = [_logprobs(model, prompt) for prompt in prompts]
    with _adapted(model, first, len(first.chunks)) as adapted:
        after = [_logprobs(adapted, prompt) for prompt in prompts]
    sizes = [float(np.linalg.norm(change(b, a))) for b, a in zip(before, after, strict=True)]
    best = sorted(np.argsort(sizes)[::-1][:_N_PROBES].tolist())
    probes = [_probe(prompts[i], before[i], after[i]) for i in best]
    answers = [
        _answers(model, container, index, n_chunks, probes)
        for index, container in enumerate(containers)
        for n_chunks in _recorded(len(container.chunks))
    ]
    kept = [answer for answer in answers if _size(probes, answer) >= LEAST_CHANGE]
    return Proof(tuple(probes), tuple(kept)) if kept else None


def _prompts(model: Any) -> list[list[int]]:
    """Return prompts of random tokens, which begin as the model's texts do."""
    config = model.config.get_text_config()
    rng, start = np.random.default_rng(_SEED), config.bos_token_id
    first: list[int] = [] if start is None else np.atleast_1d(start)[:1].tolist()
    return [
        first + rng.integers(0, int(config.vocab_size), _N_IDS - len(first)).tolist()
        for _ in range(_N_CANDIDATES)
    ]


def _logprobs(model: Any, prompt: Sequence[int]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities of every next token after a prompt [nats]."""
    import torch  # noqa: PLC0415 takes seconds

    with torch.no_grad():
        ids = torch.tensor([list(prompt)])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        return logits.double().log_softmax(-1).numpy()


def _probe(prompt: list[int], before: NDArray[np.float64], after: NDArray[np.float64]) -> Probe:
    top = [np.argsort(x)[::-1][:_N_TOKENS].tolist() for x in (before, after)]
    tokens = tuple(dict.fromkeys(top[0] + top[1]))
    return Probe(tuple(prompt), tokens, _rounded(before, tokens))


def _answers(
    model: Any, container: Container, index: int, n_chunks: int, probes: Sequence[Probe]
) -> ProbeAnswers:
    with _adapted(model, container, n_chunks) as adapted:
        rows = [_rounded(_logprobs(adapted, probe.prompt), probe.tokens) for probe in probes]
    return ProbeAnswers(index, n_chunks, tuple(rows))


@contextmanager
def _adapted(model: Any, container: Container, n_chunks: int) -> Iterator[Any]:
    """Yield the base model with a prefix on it; afterwards it is as it was."""
    from peft import PeftModel  # noqa: PLC0415 takes seconds

    from rankcast.adapters.arrays import in_full  # noqa: PLC0415 needs torch

    prefix = container.prefix(n_chunks) if n_chunks < len(container.chunks) else container
    with tempfile.TemporaryDirectory() as folder, explained("The adapter cannot be measured"):
        write_peft(in_full(prefix.tensors(), model), folder, task_type="CAUSAL_LM")
        adapted: Any = PeftModel.from_pretrained(model, folder)
    try:
        yield adapted.eval()
    finally:
        adapted.unload()


def _recorded(n_chunks: int) -> list[int]:
    """Return which prefixes of a file are recorded: all, or evenly spaced ones and the last."""
    n = min(n_chunks, _MOST_PREFIXES)
    return sorted({round((i + 1) * n_chunks / n) for i in range(n)})


def _size(probes: Sequence[Probe], answer: ProbeAnswers) -> float:
    """Return how far the answers of a prefix are from the base model's."""
    pairs = zip(probes, answer.logprobs, strict=True)
    return float(np.linalg.norm(np.concatenate([change(p.base, row) for p, row in pairs])))


def _rounded(values: NDArray[np.float64], tokens: Sequence[int]) -> tuple[float, ...]:
    return tuple(min(0.0, round(float(values[token]), _DIGITS)) for token in tokens)
