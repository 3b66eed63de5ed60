"""Tensors of an adapter are found by the names that trainers give them, and written by PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.peft_folders import PLAIN, PREFIX, QUERY, VALUE, factors, save_folder, two_projections
from rankcast.codec.formats.peft import CONFIG, WEIGHTS, PeftSource, read_peft, write_peft
from rankcast.codec.formats.peft_names import NamedTensors, modules_saved, saved_module, unwrapped
from rankcast.codec.formats.tensor_file import TensorFile
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import Projection

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
NAME = f"{PREFIX}{QUERY}.lora_A.weight"


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(WRAPPERS)), max_size=4), st.booleans())
def test_wrappers_are_stripped_wherever_they_are(
    inserted: list[tuple[int, str]], distributed: bool
) -> None:
    parts = NAME.split(".")
    for place, wrapper in inserted:
        parts.insert(min(place, len(parts)), wrapper)
    stored = ".".join((["module"] if distributed else []) + parts)
    assert unwrapped([stored]) == {NAME: stored}


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("SEQ_CLS", "score.weight"),
        ("TOKEN_CLS", "classifier.bias"),
        ("QUESTION_ANS", "qa_outputs.bias"),
    ],
)
def test_heads_of_a_task_need_not_be_listed(task: str, name: str, tmp_path: Path) -> None:
    """Earlier versions of PEFT left modules_to_save empty."""
    head = {PREFIX + name: np.ones(3, np.float32)}
    config = PLAIN | {"task_type": task, "modules_to_save": None}
    tensors, _ = read_peft(save_folder(tmp_path, config, two_projections() | head))
    assert tensors.carriage == {name: "full"}
    with pytest.raises(CodecError, match=f"{name}, which is neither"):
        read_peft(
            save_folder(tmp_path, config | {"task_type": "CAUSAL_LM"}, two_projections() | head)
        )


def test_a_module_that_peft_saved_under_three_names_is_one(tmp_path: Path) -> None:
    """So it does with save_embedding_layers, which it switches on where a vocabulary has grown."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    stem = f"{PREFIX}model.embed_tokens."
    names = ("weight", "modules_to_save.weight", "original_module.weight")
    saved = dict(zip((stem + n for n in names), (rows, rows, -rows), strict=True))
    config = PLAIN | {"modules_to_save": ["embed_tokens"]}
    folder = save_folder(tmp_path, config, two_projections() | saved)
    tensors, _ = read_peft(folder, PeftSource(embeddings=True))
    assert list(tensors.modules) == ["model.embed_tokens.weight"]
    np.testing.assert_array_equal(tensors.modules["model.embed_tokens.weight"], rows)
    saved[f"{stem}modules_to_save.weight"] = rows + 1
    with pytest.raises(CodecError, match="are the same tensor"):
        read_peft(save_folder(tmp_path, config, two_projections() | saved))


def test_a_parameter_that_is_no_experts_is_written_as_a_parameter(tmp_path: Path) -> None:
    config = PLAIN | {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]}
    tensors, _ = read_peft(save_folder(tmp_path, config, two_projections()))
    folder = write_peft(tensors, tmp_path / "out")
    written = json.loads((folder / CONFIG).read_text())
    assert written["target_modules"] == [VALUE]
    assert written["target_parameters"] == ["q_proj.weight"]
    again, _ = read_peft(folder)
    for one, other in zip(tensors.factors, again.factors, strict=True):
        np.testing.assert_allclose(one.delta_weight(), other.delta_weight(), atol=1e-5)
    with pytest.raises(CodecError, match="target_parameters"):
        write_peft(tensors, tmp_path / "vllm", uniform_rank=True)


@pytest.mark.parametrize(
    "name",
    [
        "module.x.lora_A.weight",
        f"{PREFIX}module.x.lora_A.weight",
        f"{PREFIX}base_model.model.layers.0.q_proj.lora_A.weight",  # of a class with a base_model
    ],
)
def test_a_module_that_is_called_like_a_wrapper_keeps_its_name(name: str) -> None:
    assert list(unwrapped([name])) == [name]


@pytest.mark.parametrize(
    ("stored", "module", "part"),
    [
        ("x.lora_A.weight", "x", "A"),
        ("x.lora_A.default.weight", "x", "A"),
        ("x.lora_B.bias", "x", "B.bias"),
        ("x.lora_B.my-name.bias", "x", "B.bias"),
        ("x.lora_E", "x", "E"),
        ("x.lora_E.default", "x", "E"),
        ("x.base_layer.lora_B.weight", "x.base_layer", "B"),
    ],
)
def test_the_name_of_the_adapter_does_not_matter(stored: str, module: str, part: str) -> None:
    assert NamedTensors.of({PREFIX + stored: stored}).factors == {module: {part: stored}}


def test_states_written_by_hand_name_their_modules_saved_in_full() -> None:
    named = NamedTensors.of(
        {n: n for n in ("a.modules_to_save.default.weight", "b.modules_to_save.dense.bias")}
        | {"e.token_adapter.trainable_tokens_delta.default": "tokens"}
    )
    assert list(named.others) == ["a.weight", "b.bias"]
    assert named.tokens == {"e.token_adapter.trainable_tokens_delta": "tokens"}


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    one, two = (factors(QUERY, seed=s) for s in (0, 1))
    both = {n.replace(".weight", ".a.weight"): v for n, v in one.items()}
    both |= {n.replace(".weight", ".b.weight"): v for n, v in two.items()}
    with pytest.raises(CodecError, match="more than one adapter"):
        read_peft(save_folder(tmp_path, PLAIN, both))


@pytest.mark.parametrize(
    ("name", "listed", "module"),
    [
        ("pre_classifier.weight", ["classifier"], "pre_classifier"),
        ("classifier.dense.weight", ["classifier", "score"], "classifier"),
        ("model.layers.3.input_layernorm.weight", ["norm"], "model.layers.3.input_layernorm"),
        ("model.norm.weight", ["model.norm"], "model.norm"),
        ("model.norm.weight", ["base_model.model.model.norm"], "model.norm"),
        ("model.norm.weight", ["layernorm"], None),
        ("model.q.bias", [], None),
    ],
)
def test_modules_are_matched_as_peft_does(name: str, listed: list[str], module: str | None) -> None:
    assert saved_module(name, listed) == module


@pytest.mark.parametrize(
    ("names", "modules"),
    [
        (("classifier.dense.weight", "classifier.out_proj.bias"), ["classifier"]),
        (("pre_classifier.weight", "classifier.bias"), ["classifier", "pre_classifier"]),
        (("bert.pooler.dense.weight",), ["bert.pooler"]),
        (("lm_head.bias", "lm_head.dense.weight"), ["lm_head"]),
        (("model.norm.weight", "a.norm.weight"), ["a.norm", "model.norm"]),
    ],
)
def test_the_modules_of_files_that_do_not_say_are_inferred(
    names: tuple[str, ...], modules: list[str]
) -> None:
    assert modules_saved(names) == modules


def test_modules_that_cannot_be_inferred_travel_in_the_configuration(tmp_path: Path) -> None:
    head = {f"{PREFIX}my_head.{n}.weight": np.ones((3, 4), np.float32) for n in ("one", "two")}
    config = PLAIN | {"modules_to_save": ["my_head", "unused"]}
    tensors, _ = read_peft(save_folder(tmp_path / "in", config, two_projections() | head))
    assert tensors.config == {"modules_to_save": ["my_head"]}
    config = json.loads((write_peft(tensors, tmp_path / "out") / CONFIG).read_text())
    assert config["modules_to_save"] == ["my_head"]


def test_a_plain_lora_needs_no_configuration(tmp_path: Path) -> None:
    head = {f"{PREFIX}classifier.{n}.weight": np.ones((3, 4), np.float32) for n in ("a", "b")}
    config = PLAIN | {"modules_to_save": ["classifier", "score"]}
    tensors, _ = read_peft(save_folder(tmp_path, config, two_projections() | head))
    assert tensors.config == {}


def test_what_other_versions_rename_keeps_its_selection_and_one_rank(tmp_path: Path) -> None:
    names = ("language_model.model.layers.0.q_proj", "language_model.model.layers.1.q_proj")
    tensors, _ = read_peft(
        save_folder(tmp_path / "in", PLAIN, factors(names[0]) | factors(names[1]))
    )
    assert tensors.config == {"target_modules": ["q_proj", "v_proj"]}
    cut = tensors.truncated(np.array([1, 0]))
    target = write_peft(cut, tmp_path / "out")
    config = json.loads((target / CONFIG).read_text())
    assert (config["target_modules"], config["rank_pattern"]) == (["q_proj", "v_proj"], {})
    assert config["r"] == config["lora_alpha"] == 1
    file = TensorFile.open(target / WEIGHTS)
    assert not file.array(f"{PREFIX}{names[1]}.lora_B.weight").any()
    np.testing.assert_allclose(
        file.array(f"{PREFIX}{names[0]}.lora_B.weight")
        @ file.array(f"{PREFIX}{names[0]}.lora_A.weight"),
        cut.factors[0].delta_weight(),
        atol=1e-6,
    )


def experts_of(name: str, rank: int, n: int, seed: int) -> dict[str, Any]:
    return factors(name, rank * n, seed=seed)


def test_experts_of_a_parameter_are_projections_of_their_own(tmp_path: Path) -> None:
    outer, inner = "model.layers.0.mlp.experts", "model.layers.0.mlp.experts.base_layer"
    raw = experts_of(outer, 2, 12, 1) | experts_of(inner, 2, 3, 2) | two_projections()
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = PLAIN | {"target_parameters": targets}
    tensors, _ = read_peft(save_folder(tmp_path / "in", config, raw))
    names = [p.name for p in tensors.projections]
    assert names.index(f"{outer}[2]") + 1 == names.index(f"{outer}[3]")
    assert sum(n.startswith(f"{outer}[") for n in names) == 12
    # Expert e of PEFT: rows e·r … of A, and every n-th column of B from e.
    a, b = (raw[f"{PREFIX}{outer}.lora_{part}.weight"] for part in "AB")
    delta = tensors.factors[names.index(f"{outer}[5]")].delta_weight()
    np.testing.assert_allclose(delta, 3 * b[:, [5, 17]] @ a[10:12], atol=1e-5)

    ranks = np.ones(len(names), dtype=np.int64)
    ranks[names.index(f"{outer}[5]")] = 2
    ranks[names.index(f"{inner}[0]")] = 0
    cut = tensors.truncated(ranks)
    target = write_peft(cut, tmp_path / "out")
    written = json.loads((target / CONFIG).read_text())
    assert written["target_parameters"] == targets
    assert sorted(written["target_modules"]) == [QUERY, VALUE]
    again, _ = read_peft(_without_patterns(target))
    deltas = {p.name: f for p, f in zip(again.projections, again.factors, strict=True)}
    for name, f in zip(names, cut.factors, strict=True):
        if name not in (QUERY, VALUE):
            np.testing.assert_allclose(deltas[name].delta_weight(), f.delta_weight(), atol=1e-5)
    with pytest.raises(CodecError, match="target_parameters"):
        write_peft(tensors, tmp_path / "vllm", uniform_rank=True)


def _without_patterns(folder: Path) -> Path:
    """Leave only the experts, whose rank no pattern names."""
    config = json.loads((folder / CONFIG).read_text())
    assert set(config["rank_pattern"]) == {QUERY, VALUE}
    file = TensorFile.open(folder / WEIGHTS)
    kept = {n: file.array(n) for n in file.entries if "self_attn" not in n}
    return save_folder(
        folder.parent / "experts", config | {"rank_pattern": {}, "alpha_pattern": {}}, kept
    )


def test_experts_with_a_gap_are_not_written(tmp_path: Path) -> None:
    projections = tuple(Projection(f"x[{i}]", 0, "x", 2, 2) for i in (0, 2))
    pair = Factors(np.ones((2, 1), np.float32), np.ones((1, 2), np.float32))
    with pytest.raises(CodecError, match="not complete"):
        write_peft(AdapterTensors(projections, (pair, pair), {}, {}), tmp_path / "x")


def test_fields_of_a_later_version_are_not_dropped(tmp_path: Path) -> None:
    pair = Factors(np.ones((2, 1), np.float32), np.ones((1, 2), np.float32))
    later = AdapterTensors((Projection("x", 0, "x", 2, 2),), (pair,), {}, {}, {"later": 1})
    with pytest.raises(CodecError, match="later"):
        write_peft(later, tmp_path / "x")


def test_ranks_that_the_configuration_does_not_name_are_no_experts(tmp_path: Path) -> None:
    config = PLAIN | {"target_parameters": ["mlp.weight"]}
    with pytest.raises(CodecError, match="rank 4"):
        read_peft(save_folder(tmp_path, config, factors(QUERY, 4)))


def test_the_bias_of_lora_b_is_scaled_and_stays_with_projections_of_rank_0(tmp_path: Path) -> None:
    biases = {f"{PREFIX}{m}.lora_B.bias": np.arange(4, dtype=np.float32) for m in (QUERY, VALUE)}
    config = PLAIN | {"lora_bias": True}
    tensors, _ = read_peft(save_folder(tmp_path / "in", config, two_projections() | biases))
    np.testing.assert_array_equal(tensors.modules[f"{QUERY}.lora_B.bias"], [0, 3, 6, 9])
    target = write_peft(tensors.truncated(np.array([2, 0])), tmp_path / "out")
    written = json.loads((target / CONFIG).read_text())
    assert written["lora_bias"] is True
    assert sorted(written["target_modules"]) == [QUERY, VALUE]
    with pytest.raises(CodecError, match="lora_bias"):
        write_peft(tensors, tmp_path / "vllm", uniform_rank=True)


class OneWeight:
    """A base model that has one weight."""

    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def weight(self, name: str, /) -> Any:
        from rankcast.errors import ModelError

        if name != self.name:
            raise ModelError(f"no {name}")
        return self.values


def test_embeddings_come_along_only_if_asked_for(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    name = f"{PREFIX}model.embed_tokens.weight"
    config = PLAIN | {"modules_to_save": ["embed_tokens"]}
    folder = save_folder(tmp_path, config, two_projections() | {name: rows})
    with pytest.raises(CodecError, match=r"embed_tokens.weight \(10.0 kB\), 99% of the adapter"):
        read_peft(folder)
    wide = save_folder(tmp_path / "wide", config, two_projections() | {name: np.ones((60_000, 5))})
    with pytest.raises(CodecError, match=r"embed_tokens.weight \(2.4 MB\)"):
        read_peft(wide)
    tensors, _ = read_peft(folder, PeftSource(embeddings=True))
    assert tensors.carriage == {"model.embed_tokens.weight": "full"}
    for base, expected in ((rows, 0), (rows + 1, None)):
        source = PeftSource(base=OneWeight("model.embed_tokens", base))
        if expected is None:
            with pytest.raises(CodecError, match="--embeddings"):
                read_peft(folder, source)
        else:
            assert len(read_peft(folder, source)[0].modules) == expected


def test_an_output_layer_that_peft_added_is_left_out_if_it_is_the_base_models(
    tmp_path: Path,
) -> None:
    rows = np.ones((20, 5), np.float32)
    copied = {f"{PREFIX}lm_head.base_layer.weight": rows}
    folder = save_folder(tmp_path, PLAIN, factors("lm_head", d_out=20) | copied)
    with pytest.raises(CodecError, match=r"lm_head.base_layer.weight"):
        read_peft(folder)
    tensors, _ = read_peft(folder, PeftSource(base=OneWeight("lm_head", rows)))
    assert not tensors.modules
    assert [p.name for p in tensors.projections] == ["lm_head"]


def test_an_adapter_that_learned_nothing_says_so(tmp_path: Path) -> None:
    trained = two_projections()
    zero = {n: v * ("lora_A" in n) for n, v in trained.items()}
    for config, tensors in (
        (PLAIN, zero),
        (PLAIN, {n: v * ("lora_B" in n) for n, v in trained.items()}),
        (PLAIN | {"lora_alpha": 0}, trained),
        (PLAIN, {}),
    ):
        with pytest.raises(CodecError, match=r"every lora_B or lora_A is zero, or lora_alpha is"):
            read_peft(save_folder(tmp_path, config, tensors))
    head = {f"{PREFIX}score.weight": np.ones((2, 4), np.float32)}
    config = PLAIN | {"modules_to_save": ["score"]}
    tensors, _ = read_peft(save_folder(tmp_path, config, zero | head))
    assert tensors.is_general  # only the head was trained
    tensors, _ = read_peft(save_folder(tmp_path, config, head))
    assert list(tensors.modules) == list(head)


def test_shards_and_numbers_of_other_types_are_refused_by_name(tmp_path: Path) -> None:
    for values, words in (
        (np.zeros((0,), np.float32), "shards"),
        (np.ones(2, np.uint16), "uint16"),
    ):
        with pytest.raises(CodecError, match=words):
            read_peft(save_folder(tmp_path, {"peft_type": "NEW"}, {"x": values}))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("adapter_model.bin",), "torch.load"),
        (("adapter_model-00001-of-00002.safetensors",), "in 1 pieces"),
        ((), "adapter_model.safetensors is missing"),
    ],
)
def test_weights_in_other_files_are_explained(
    files: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    save_folder(tmp_path, PLAIN, {})
    (tmp_path / WEIGHTS).unlink()
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CodecError, match=words):
        read_peft(tmp_path)
