"""Models of many architectures with random weights, built in a fraction of a second.

The same name and seed give the same weights in every process, so that a second build stands for
the untouched base model on another machine. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helpers.tensors import normal, seeded

VOCABULARY, HIDDEN, INNER, LENGTH = 64, 32, 48, 12
TEXT = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "max_position_embeddings": 64}
TEXT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": INNER}
ENCODER = {**TEXT, "num_labels": 3, "initializer_range": 0.1, "pad_token_id": 0}
DECODER = {**TEXT, "num_key_value_heads": 2, "initializer_range": 0.1, "pad_token_id": 0}
DECODER |= {"use_cache": False}
IMAGE = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2}
IMAGE |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 4, "initializer_range": 0.1}


@dataclass(frozen=True)
class TinyModel:
    """An architecture, and how it is usually fine-tuned with LoRA.

    Attributes:
        make: builds the model from the global generator.
        inputs: what its forward pass takes.
        targets: the usual `target_modules`.
        task: PEFT's task type, or None.
        heads: the usual `modules_to_save` beyond those that the task brings.
    """

    make: Callable[[], Any]
    inputs: Callable[[], dict[str, Tensor]]
    targets: tuple[str, ...]
    task: str | None
    heads: tuple[str, ...] = ()


def build(name: str, seed: int = 0) -> Any:
    """Build a model of `MODELS`, in evaluation mode."""
    torch.manual_seed(seed)
    model = MODELS[name].make()
    generator = seeded(seed + 1)
    with torch.no_grad():  # norms and biases are ones and zeros at first, all alike
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, name: str, **more: Any) -> Tensor:
    """Return what the model says to the inputs of its architecture."""
    found = model(**MODELS[name].inputs(), **more)
    return (found if isinstance(found, Tensor) else found.logits).float()


def error_of(found: Tensor, wanted: Tensor, base: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted − base‖: 0 is exact, 1 as wrong as no adapter at all."""
    return float((found - wanted).norm() / (wanted - base).norm())


def _ids() -> Tensor:
    return torch.arange(3, 3 + LENGTH)[None]


def _text() -> dict[str, Tensor]:
    return {"input_ids": _ids()}


def _image() -> dict[str, Tensor]:
    return {"pixel_values": normal(1, 3, 8, 8, seed=5)}


def _two_texts() -> dict[str, Tensor]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids()[:, :5]}


def _speech() -> dict[str, Tensor]:
    return {"input_features": normal(1, 8, 16, seed=5), "decoder_input_ids": _ids()[:, :5]}


def _text_and_image() -> dict[str, Tensor]:
    ids = torch.cat([torch.full((1, 4), VOCABULARY - 1), _ids()], 1)  # 4 patches
    return {"input_ids": ids, **_image()}


def _of(model: str, config: str, settings: Mapping[str, Any]) -> Callable[[], Any]:
    """Return what builds a model of transformers from its configuration."""

    def make() -> Any:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return make


def _llava() -> Any:
    import transformers

    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**IMAGE, projection_dim=HIDDEN),
            text_config=transformers.LlamaConfig(**DECODER),
            image_token_index=VOCABULARY - 1,
            vision_feature_layer=-1,
        )
    )


class Convolutional(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.second(self.first(pixel_values).relu()).relu()
        return self.head(hidden.mean((2, 3)))


def _encoder(name: str, targets: tuple[str, ...], *heads: str, **more: Any) -> TinyModel:
    model = _of(f"{name}ForSequenceClassification", f"{name}Config", ENCODER | more)
    return TinyModel(model, _text, targets, "SEQ_CLS", heads)


def _decoder(
    name: str, *targets: str, config: str = "", suffix: str = "ForCausalLM", **more: Any
) -> TinyModel:
    model = _of(name + suffix, config or f"{name}Config", DECODER | more)
    return TinyModel(model, _text, targets, "CAUSAL_LM")


_T5 = {"vocab_size": VOCABULARY, "d_model": HIDDEN, "d_ff": INNER, "d_kv": 8, "num_layers": 2}
_T5 |= {"num_heads": 4, "dropout_rate": 0.0, "decoder_start_token_id": 0}
_WHISPER = {"vocab_size": VOCABULARY, "num_mel_bins": 8, "d_model": HIDDEN, "encoder_layers": 2}
_WHISPER |= {"decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_WHISPER |= {"encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "max_source_positions": 8}
_WHISPER |= {"max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WHISPER |= {"decoder_start_token_id": 1, "init_std": 0.1}

ARCHITECTURES: dict[str, TinyModel] = {
    "BERT": _encoder("Bert", ("query", "value")),
    "RoBERTa": _encoder("Roberta", ("query", "value"), pad_token_id=1),
    "DistilBERT": _encoder(
        "DistilBert",
        ("q_lin", "v_lin"),
        "pre_classifier",
        n_layers=2,
        n_heads=4,
        dim=HIDDEN,
        hidden_dim=INNER,
    ),
    "DeBERTa-v2": _encoder(
        "DebertaV2", ("query_proj", "value_proj"), "pooler", "classifier", pooler_hidden_size=HIDDEN
    ),
    "ELECTRA": _encoder("Electra", ("query", "value"), embedding_size=16),
    "GPT-2": _decoder(
        "GPT2", "c_attn", suffix="LMHeadModel", n_inner=INNER, bos_token_id=1, eos_token_id=2
    ),
    "OPT": _decoder("OPT", "q_proj", "v_proj", ffn_dim=INNER, word_embed_proj_dim=HIDDEN),
    "Llama": _decoder("Llama", "q_proj", "v_proj"),
    "Qwen3": _decoder("Qwen3", "q_proj", "v_proj", "down_proj", head_dim=8),
    "Gemma 3": _decoder(
        "Gemma3",
        "q_proj",
        "v_proj",
        config="Gemma3TextConfig",
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Phi-3": _decoder("Phi3", "qkv_proj", "down_proj", bos_token_id=1, eos_token_id=2),
    "Mixtral": _decoder("Mixtral", "q_proj", "v_proj", num_local_experts=4),
    "T5": TinyModel(
        _of("T5ForConditionalGeneration", "T5Config", _T5),
        _two_texts,
        ("q", "v"),
        "SEQ_2_SEQ_LM",
    ),
    "Whisper": TinyModel(
        _of("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
        _speech,
        ("q_proj", "v_proj"),
        None,
    ),
    "ViT": TinyModel(
        _of("ViTForImageClassification", "ViTConfig", IMAGE | {"num_labels": 3}),
        _image,
        ("query", "value", "q_proj", "v_proj"),
        None,
        ("classifier",),
    ),
    "LLaVA": TinyModel(_llava, _text_and_image, ("q_proj", "v_proj"), "CAUSAL_LM"),
}
"""The architectures whose adapters are packed, exported and merged in the tests."""

MODELS = ARCHITECTURES | {
    "convolutional": TinyModel(Convolutional, _image, ("first", "second"), None, ("head",)),
}
