"""Names in the files of PEFT's adapters: what each tensor is, and which modules are in full."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError
from rankcast.naming import ORDER, kind_of, layer_number

PREFIX = "base_model.model."
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What torch.compile, FSDP and checkpointing put into names."""
_FACTOR = re.compile(r"(.+)\.lora_([ABE]|rank)(?:\.[^.]+)??(\.weight|\.bias)?")
_SAVED = re.compile(r"\.modules_to_save(\.[^.]+(?=\.[^.]+))?(?=\.)")
"""Of modules saved in full, in a state that was written by hand; PEFT leaves it out."""
_TOKENS = re.compile(r"(.+\.token_adapter\.trainable_tokens_delta)(\.[^.]+)?")
_EXPERT = re.compile(r"(.*)\[(\d+)\]")
_WHOLE = ("classifier", "score", "qa_outputs", "pooler")
"""Heads that PEFT saves as one module, by the end of their names, whatever they consist of."""
_SEEING = {
    "language_model", "text_model", "vision_model", "vision_tower", "visual", "audio_tower",
    "multi_modal_projector",
}  # fmt: skip


@dataclass(frozen=True)
class NamedTensors:
    """The tensors of a LoRA by what they are, each with its name in the file.

    Attributes:
        factors: of each module: its `A`, `B`, AdaLoRA's `E`, the `bias` of its B, and the `rank` at
            which an elastic adapter was saved.
        tokens: rows of embeddings, trained one by one.
        others: everything else, by its name in the base model.
    """

    factors: Mapping[str, dict[str, str]] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Mapping[str, str]) -> NamedTensors:
        """Sort names that `unwrapped` returned.

        Raises:
            CodecError: two tensors that are the same one, as of two adapters in one file.
        """
        factors: dict[str, dict[str, str]] = {}
        tokens: dict[str, str] = {}
        others: dict[str, str] = {}
        for name, stored in names.items():
            plain = name.removeprefix(PREFIX)
            if match := _FACTOR.fullmatch(plain):
                module, part, kind = match.groups()
                part = f"{part}.bias" if kind == ".bias" else part
                _put(factors.setdefault(module, {}), part, stored)
            elif match := _TOKENS.fullmatch(plain):
                _put(tokens, match[1], stored)
            else:
                _put(others, _SAVED.sub("", plain), stored)
        return cls(factors, tokens, others)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return names without what wraps a model in training, each with its name in the file.

    Raises:
        CodecError: two tensors of one name.
    """
    found: dict[str, str] = {}
    for stored in names:
        parts = [part for part in stored.split(".") if part not in _WRAPPERS]
        while parts[0] == "module" and "base_model" in parts[1:3]:  # DistributedDataParallel
            parts = parts[1:]
        _put(found, ".".join(parts), stored)
    return found


def _put(found: dict[str, str], name: str, stored: str) -> None:
    if name in found:
        raise CodecError(
            f"{found[name]} and {stored} are the same tensor: the file holds more than one "
            f"adapter. Save each in a folder of its own."
        )
    if not name or set(name) & set("/\\\0"):
        raise CodecError(f"The adapter has a tensor named {stored!r}, which is no name.")
    found[name] = stored


def bare(name: str) -> str:
    """Return the name of a tensor without the wrapper of a module that is saved in full."""
    return _SAVED.sub("", name.replace(".original_module.", "."))


def saved_module(name: str, saved: Collection[str]) -> str | None:
    """Return the module that PEFT saved in full with a tensor, if `modules_to_save` names it.

    PEFT takes every module whose name ends in one of these, be it in the middle of a word.
    """
    parts = name.split(".")[:-1]
    for n in range(1, len(parts) + 1):
        path = ".".join(parts[:n])
        if any((PREFIX + path).endswith(end) for end in saved):
            return path
    return None


def modules_saved(names: Iterable[str]) -> list[str]:
    """Return modules that hold tensors saved in full, none inside another: `modules_to_save`."""
    paths = sorted({saved_module(name, _WHOLE) or name.rpartition(".")[0] for name in names})
    outer: list[str] = []
    for path in paths:
        if not any(path.startswith(f"{other}.") for other in outer):
            outer.append(path)
    return outer


def is_embedding(name: str) -> bool:
    """Whether a tensor is the weight of an embedding, a row for each token of a vocabulary."""
    path, _, kind = re.sub(r"\.(base_layer|token_adapter)\b", "", name).rpartition(".")
    last = path.rpartition(".")[2]
    return kind == "weight" and ("embed" in last or last in ("wte", "wpe", "shared"))


def may_be_renamed(modules: Iterable[str]) -> bool:
    """Whether other versions of transformers may know an adapter's modules by other names.

    They renamed the parts of models that see or hear, and joined experts that were modules each.
    PEFT follows them, but only in the names that `target_modules` and the tensors had.
    """
    return any(
        re.search(r"\.experts\.\d+\.", name) or not _SEEING.isdisjoint(name.split("."))
        for name in modules
    )


def is_parameter(module: str, config: Mapping[str, Any]) -> bool:
    """Whether factors are of a parameter in `target_parameters`, and not of a module.

    PEFT names the factors of a second parameter of the same module as of its `base_layer`.
    """
    plain = f".{module}".replace(".base_layer", "")
    targets = config.get("target_parameters") or ()
    return any(plain.endswith(f".{target.rpartition('.')[0]}") for target in targets)


def expert_name(module: str, index: int) -> str:
    """Return the name of a projection that is one expert's share of a parameter."""
    return f"{module}[{index}]"


def split_expert(name: str) -> tuple[str, int | None]:
    """Return the module in the file and the number of the expert; None for a plain projection."""
    match = _EXPERT.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def place(module: str) -> tuple[int, int, str]:
    """Return where a module stands: layer by layer, in the order of use."""
    kind = kind_of(module)
    return layer_number(module), ORDER.index(kind) if kind in ORDER else len(ORDER), module


def beyond_lora(tensors: AdapterTensors) -> str | None:
    """Return what makes an adapter more than low-rank maps and modules in full; None if nothing."""
    if tensors.is_general:
        return f"in general form ({tensors.config['peft_type']})"
    own = [name for name, how in tensors.carriage.items() if how == "own"]
    more = own + [p.name for p in tensors.projections if split_expert(p.name)[1] is not None]
    return f"more ({more[0]})" if more else None
