"""What llama.cpp has to know of a base model to take an adapter for it, without its weights.

The names are those of the package `gguf`. llama.cpp's converter moves rows of some weights, and an
adapter whose rows stay behind answers nonsense without an error: what is not known to stay or to
move is refused here, and `rankcast.codec.formats.gguf_order` measures it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from rankcast.codec.formats.gguf_header import GgufHeader
from rankcast.errors import ConfigError, ModelError, nearest

_WORDS = {
    "mistral": "llama",
    "mixtral": "llama",
    "internlm3": "llama",
    "ministral3": "mistral3",
    "cohere": "command-r",
    "phi": "phi2",
    "gptbigcode": "starcoder",
    "glm": "chatglm",
    "olmo3": "olmo2",
    "granitemoeshared": "granitemoe",
    "hunyuanv1dense": "hunyuan-dense",
    "hunyuanv1moe": "hunyuan-moe",
    "exaone45": "exaone4",
    "qwen25vl": "qwen2vl",
}
"""llama.cpp's words for model types that have other names there."""
_INTERLEAVED = frozenset(
    (
        "arcee", "granite", "granitemoe", "llama", "llama-embed", "minicpm", "mistral3", "olmo",
        "smollm3",
    )
)  # fmt: skip
"""Architectures of which the converter interleaves the halves of q's and k's heads."""
_OTHERWISE_KEPT = frozenset(
    (
        "apertus", "bloom", "chatglm", "cohere2", "command-r", "ernie4_5", "exaone", "exaone4",
        "falcon", "gemma", "gemma2", "gemma3", "gpt-oss", "gpt2", "gptneox", "hunyuan-dense",
        "hunyuan-moe", "jais2", "lfm2", "llama4", "mpt", "nemotron", "olmo2", "olmoe", "phi2",
        "phi3", "phimoe", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl",
        "qwen3vlmoe", "seed_oss", "starcoder", "starcoder2",
    )
)  # fmt: skip
"""Architectures of which it moves no row of a linear map, but for fused ones that
`rankcast.codec.formats.gguf` moves."""
_TIED = frozenset(
    (
        "bloom", "cohere", "cohere2", "ernie45", "falcon", "gemma", "gemma2", "gemma3", "gpt2",
        "gptbigcode", "lfm2", "mpt", "qwen3vlmoe", "smollm3", "starcoder2",
    )
)  # fmt: skip
"""Model types whose output layer is their embedding unless the configuration says otherwise."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads")


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """What an adapter's GGUF depends on.

    Attributes:
        name: llama.cpp's word, such as `gemma3`.
        n_layers: of the model.
        n_heads: attention heads of a layer.
        n_kv_heads: heads that share keys and values.
        interleaved: whether llama.cpp's converter interleaves the halves of q's and k's heads.
        tied: whether the output layer is the embedding.
    """

    name: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    interleaved: bool
    tied: bool

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, interleaved: bool | None = None) -> Self:
        """Return the architecture of a Hugging Face `config.json`.

        Args:
            config: of the model; `text_config` inside it is followed.
            interleaved: as it was measured; None looks it up.

        Raises:
            ConfigError: a model that llama.cpp does not know, one of which the order of the rows is
                not known, or a configuration that lacks a number.
        """
        text = config.get("text_config")
        inner = {**config, **text} if isinstance(text, Mapping) else config
        kind = str(inner.get("model_type"))
        name = architecture_name(kind)
        order = known_order(name) if interleaved is None else interleaved
        tied = inner.get("tie_word_embeddings")
        heads = _number(inner, _HEADS)
        return cls(
            name,
            _number(inner, _LAYERS),
            heads,
            _kv_heads(inner, heads),
            order,
            _plain(kind) in _TIED if tied is None else bool(tied),
        )

    @classmethod
    def of_gguf(cls, path: str | os.PathLike[str], *, interleaved: bool | None = None) -> Self:
        """Return the architecture of a base model's GGUF; nothing of its weights is read.

        Args:
            path: of the file, or of the first of several.
            interleaved: as it was measured; None looks it up.

        Raises:
            ModelError: no GGUF of a model.
            ConfigError: an architecture of which the order of the rows is not known.
        """
        header = GgufHeader.open(path)
        name = header.text("general.architecture")
        kind = header.metadata.get("general.type", "model")
        if kind != "model":
            raise ModelError(f"{path} is no base model but of type {kind!r}.")
        order = known_order(name) if interleaved is None else interleaved
        heads = f"{name}.attention.head_count"
        kv_heads = f"{heads}_kv"
        return cls(
            name,
            header.number(f"{name}.block_count"),
            header.number(heads),
            header.number(kv_heads if kv_heads in header.metadata else heads),
            order,
            "output.weight" not in header.tensors,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return what `from_plain` takes, for JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Return what `to_plain` gave.

        Raises:
            ConfigError: something is missing, unknown or of another type.
        """
        kinds = {"name": str, "interleaved": bool, "tied": bool}
        names = [f.name for f in fields(cls)]
        if not isinstance(plain, Mapping) or set(plain) != set(names):
            raise ConfigError(
                f"An architecture for GGUF is described by {', '.join(names)}; this is {plain!r}."
            )
        for name in names:
            kind = kinds.get(name, int)
            value = plain[name]
            if type(value) is not kind or (kind is int and value < 1) or value == "":
                raise ConfigError(f"{name} of an architecture for GGUF cannot be {value!r}.")
        return cls(**plain)


def architecture_name(model_type: str) -> str:
    """Return llama.cpp's word for the `model_type` of a Hugging Face configuration.

    Raises:
        ConfigError: the package `gguf` knows none, or is missing.
    """
    known = {_plain(name): name for name in library().MODEL_ARCH_NAMES.values()}
    word = _plain(model_type)
    if word in _WORDS:
        return _WORDS[word]
    if word in known:
        return known[word]
    raise ConfigError(
        f"llama.cpp knows no architecture for {model_type!r}{nearest(word, known)}, as far as the "
        f"package gguf says. A newer gguf may; otherwise this model does not run there."
    )


def is_known(name: str) -> bool:
    """Return whether it is known what llama.cpp's converter does to an architecture's rows."""
    return name in _INTERLEAVED or name in _OTHERWISE_KEPT


def known_order(name: str) -> bool:
    """Return whether llama.cpp's converter interleaves q and k of an architecture.

    Raises:
        ConfigError: it is not known what the converter does.
    """
    if name in _INTERLEAVED:
        return True
    if name in _OTHERWISE_KEPT:
        return False
    raise ConfigError(
        f"It is not known in which order llama.cpp has the rows of {name}'s weights, and a wrong "
        f"order answers nonsense without an error. Name the base model's GGUF with --base-gguf and "
        f"its Hugging Face folder with --base-model: the order is then measured."
    )


def tensor_name(architecture: GgufArchitecture) -> Callable[[str], str | None]:
    """Return what gives llama.cpp's name of the weight of a module; None where it has none.

    Raises:
        ConfigError: the package `gguf` does not know the architecture, or is missing.
    """
    gguf = library()
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture.name not in kinds:
        raise ConfigError(
            f"The package gguf that is installed does not know {architecture.name}: "
            f"pip install --upgrade gguf."
        )
    known = gguf.get_tensor_name_map(kinds[architecture.name], architecture.n_layers)

    def name_of(module: str) -> str | None:
        weight = f"{module.replace('language_model.', '')}.weight"
        return known.get_name(weight, try_suffixes=(".weight",))

    return name_of


def library() -> Any:
    """Return the package `gguf`.

    Raises:
        ConfigError: the extra is missing.
    """
    try:
        import gguf  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigError("GGUF needs the package gguf: pip install 'rankcast[gguf]'.") from error
    return gguf


def _plain(word: str) -> str:
    """Return a name without separators, and without `text` of a model that also sees."""
    return word.lower().translate(str.maketrans("", "", "-_.")).removesuffix("text")


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    """Return how many heads share keys and values, as the model's class reads its configuration."""
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    return _number(config, _KV_HEADS, heads)


def _number(config: Mapping[str, Any], names: Iterable[str], default: int | None = None) -> int:
    """Return the first number that a configuration has of several names for it."""
    for name in names:
        value = config.get(name)
        value = max(value) if isinstance(value, list) and value else value
        if isinstance(value, int) and value > 0:
            return value
    if default is None:
        raise ConfigError(
            f"The configuration of {config.get('model_type')!r} has none of {', '.join(names)}. "
            f"Name a GGUF of the base model with --base-gguf, which says it."
        )
    return default
