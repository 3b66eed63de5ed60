"""A proof tells an adapter from the base model, from others, and from itself at another scale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rankcast.codec.header import BaseModel
from rankcast.errors import DeliveryError
from rankcast.release.manifest import Blob, Chunk, File, Manifest
from rankcast.release.proof import Probe, ProbeAnswers, Proof, Verdict, change
from rankcast.release.runs_on import BaseCopy, copy_with

N_WORDS = 50
RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(4, N_WORDS)) * 2.0
CHANGE = RNG.normal(size=(4, N_WORDS))


def logprobs(logits: Any) -> Any:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def proof() -> Proof:
    before, after = logprobs(BASE), logprobs(BASE + CHANGE)
    probes, rows = [], []
    for i in range(4):
        top = [np.argsort(x[i])[::-1][:5].tolist() for x in (before, after)]
        tokens = tuple(dict.fromkeys(top[0] + top[1]))
        probes.append(Probe((1, i), tokens, tuple(before[i, list(tokens)].tolist())))
        rows.append(tuple(after[i, list(tokens)].tolist()))
    return Proof(tuple(probes), (ProbeAnswers(0, 3, tuple(rows)),))


def verdict(engine_base: Any, engine_adapted: Any) -> Verdict:
    known = proof()
    expected = known.expected(0, 3)
    assert expected is not None

    def engine(logits: Any) -> Any:
        def answers(prompt: Sequence[int], tokens: Sequence[int]) -> Sequence[float]:
            return logprobs(logits)[prompt[1], list(tokens)].tolist()

        return answers

    return known.judge(expected, engine(engine_base), engine(engine_adapted))


def test_the_same_engine_has_all_of_the_change() -> None:
    found = verdict(BASE, BASE + CHANGE)
    assert (found.share, found.error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
    assert found.passes


def test_no_change_has_none_of_it() -> None:
    found = verdict(BASE, BASE)
    assert (found.share, found.error) == (0.0, pytest.approx(1.0))
    assert not found.passes


@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_a_quantised_base_that_shifts_all_logits_passes(shift: float) -> None:
    """A shift of .3 is as Q4_K_M's on small models; it moves the base alone, too."""
    noise = shift * np.random.default_rng(1).normal(size=BASE.shape)
    more = 0.2 * shift * np.random.default_rng(2).normal(size=BASE.shape)
    assert verdict(BASE + noise, BASE + noise + CHANGE + more).passes


@pytest.mark.parametrize("scale", [-1.0, 0.2, 6.0])
def test_another_scale_fails(scale: float) -> None:
    assert not verdict(BASE, BASE + scale * CHANGE).passes


def test_other_adapters_of_the_same_size_fail() -> None:
    for seed in range(20):
        other = np.random.default_rng(100 + seed).normal(size=CHANGE.shape)
        assert not verdict(BASE, BASE + other).passes


def test_a_change_is_of_square_roots() -> None:
    found = change([np.log(0.25), np.log(0.04)], [np.log(0.16), np.log(0.36)])
    np.testing.assert_allclose(found, [-0.1, 0.4])
    assert np.isfinite(change([-1e3], [-1e3])).all()


def test_the_nearest_recorded_prefix_of_the_file_is_expected() -> None:
    answers = tuple(ProbeAnswers(i, n, ((-1.0,),)) for i, n in ((0, 2), (0, 8), (1, 4)))
    known = Proof((Probe((1,), (2,), (-2.0,)),), answers)
    found = {n: known.expected(0, n) for n in (1, 2, 4, 6, 9)}
    assert [a.n_chunks for a in found.values() if a] == [2, 2, 2, 8, 8]
    assert known.expected(2, 1) is None


COPY = BaseCopy("ab" * 32, "gguf", "tiny-Q4_K_M.gguf", "Q4_K_M", 1000, 0.06, {"name": "llama"})


def manifest(**more: Any) -> Manifest:
    blob = Blob("0" * 64, 1)
    return Manifest("a", 1, BaseModel("tiny", "0" * 64), (File(blob, (Chunk(blob),)),), {}, **more)


def test_manifests_carry_both_and_old_ones_neither() -> None:
    full = manifest(runs_on=(COPY,), proof=proof())
    assert Manifest.from_bytes(full.to_bytes()) == full
    plain = manifest()
    assert Manifest.from_bytes(plain.to_bytes()) == plain
    assert {"runs_on", "proof"}.isdisjoint(json.loads(plain.to_bytes()))


def test_fields_of_a_later_version_are_passed_over() -> None:
    full = json.loads(manifest(runs_on=(COPY,), proof=proof()).to_bytes())
    for entry in (full["runs_on"][0], full["proof"], full["proof"]["probes"][0]):
        entry["later"] = 1
    assert Manifest.from_bytes(json.dumps(full).encode()) == manifest(
        runs_on=(COPY,), proof=proof()
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runs_on", 0, "fingerprint"), "xyz"),
        (("runs_on", 0, "kind"), "onnx"),
        (("runs_on", 0, "n_bytes"), 0),
        (("runs_on", 0, "error"), float("1e9")),
        (("runs_on", 0, "architecture"), {"name": {"deep": 1}}),
        (("runs_on",), 7),
        (("proof", "probes"), []),
        (("proof", "probes", 0, "prompt"), [-1]),
        (("proof", "probes", 0, "tokens"), list(range(99))),
        (("proof", "probes", 0, "base"), [0.5]),
        (("proof", "answers", 0, "n_chunks"), True),
        (("proof", "answers", 0, "logprobs"), [[-1.0]]),
        (("proof",), []),
    ],
)
def test_what_cannot_be_is_refused(path: tuple[Any, ...], value: Any) -> None:
    plain = json.loads(manifest(runs_on=(COPY,), proof=proof()).to_bytes())
    place = plain
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DeliveryError):
        Manifest.from_bytes(json.dumps(plain).encode())


def test_a_copy_is_found_by_a_whole_or_a_cut_fingerprint() -> None:
    assert copy_with([COPY], ["cd" * 32, "ab" * 10]) is COPY
    assert copy_with([COPY], ["cd" * 32]) is None
    assert COPY.words("tiny") == "a Q4_K_M copy of tiny (tiny-Q4_K_M.gguf)"
