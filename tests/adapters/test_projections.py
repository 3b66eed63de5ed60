from __future__ import annotations

import pytest
from torch import nn

from helpers.models import ARCHITECTURES, tiny_model
from rankcast.adapters.projections import find_projections
from rankcast.errors import ConfigError, ModelError

SIX = ("q", "k", "v", "o", "fc1", "fc2")
EXPECTED = {
    "bert": (2, SIX),
    "roberta": (2, SIX),
    "minilm": (2, SIX),
    "opt": (2, SIX),
    "gpt2": (2, ("qkv", "o", "fc1", "fc2")),
    "llama": (2, ("q", "k", "v", "o", "gate", "fc1", "fc2")),
    "t5": (4, (*SIX[:4], "fc1", "fc2", "cross_q", "cross_k", "cross_v", "cross_o")),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_has_the_projections_of_its_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    layout = find_projections(model, r_max=4)
    n_layers, kinds = EXPECTED[architecture]

    assert layout.n_layers == n_layers
    assert layout.kinds == kinds
    assert layout.r_max == 4
    layers = [p.layer for p in layout.projections]
    assert layers == sorted(layers)
    for p in layout.projections:
        module = model.get_submodule(p.name)
        shape = tuple(module.weight.shape)
        expected = (p.d_in, p.d_out) if architecture == "gpt2" else (p.d_out, p.d_in)
        assert shape == expected


def test_order_inside_a_layer_is_the_papers_where_the_model_declares_another() -> None:
    layout = find_projections(tiny_model("opt"))

    assert [p.kind for p in layout.projections[:6]] == list(SIX)


def test_widths_of_conv1d_are_input_first() -> None:
    qkv, o, fc1, fc2 = find_projections(tiny_model("gpt2", n_layers=1)).projections

    assert (qkv.d_in, qkv.d_out) == (16, 48)
    assert (o.d_in, o.d_out) == (16, 16)
    assert (fc1.d_in, fc1.d_out) == (16, 24)
    assert (fc2.d_in, fc2.d_out) == (24, 16)


def test_t5_numbers_decoder_layers_after_encoder_layers() -> None:
    layout = find_projections(tiny_model("t5"))
    first_decoder = next(p for p in layout.projections if "decoder" in p.name)

    assert first_decoder.layer == 2
    assert [p.kind for p in layout.projections if p.layer == 2] == [
        *("q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o", "fc1", "fc2")
    ]


def test_kinds_select() -> None:
    layout = find_projections(tiny_model("bert"), kinds=["v", "q"])

    assert [(p.layer, p.kind) for p in layout.projections] == [
        (0, "q"),
        (0, "v"),
        (1, "q"),
        (1, "v"),
    ]
    assert find_projections(tiny_model("bert"), kinds="fc1").kinds == ("fc1",)


def test_unknown_kind_names_the_nearest_and_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'fc3'; did you mean 'fc[12]'.*q, k, v, o, fc1, fc2"):
        find_projections(tiny_model("bert"), kinds=["fc3"])
    with pytest.raises(ConfigError, match="No kind"):
        find_projections(tiny_model("bert"), kinds=[])


def test_unknown_architecture_goes_by_last_names() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 5)
            self.norm = nn.LayerNorm(5)
            self.out = nn.Linear(5, 3)

    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 3)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.head = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    layout = find_projections(Strange())

    assert [p.name for p in layout.projections] == [
        *("blocks.0.mix", "blocks.0.out", "blocks.1.mix", "blocks.1.out")
    ]
    assert [(p.d_in, p.d_out) for p in layout.projections[:2]] == [(3, 5), (5, 3)]
    assert layout.kinds == ("mix", "out")


def test_model_without_projections_is_refused() -> None:
    with pytest.raises(ModelError, match="no linear projection"):
        find_projections(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_r_max_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        find_projections(tiny_model("bert"), r_max=0)


def test_a_peft_wrapped_model_has_the_layout_of_its_base() -> None:
    from peft import LoraConfig, get_peft_model

    expected = find_projections(tiny_model("bert"))
    wrapped = get_peft_model(
        tiny_model("bert"), LoraConfig(r=2, target_modules=["query", "output.dense"])
    )

    assert find_projections(wrapped) == expected
