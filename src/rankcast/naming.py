"""Names: of a transformer's linear maps, as the paper's six, and of models, fit to be published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# How architectures spell the six projections of the paper: the longest suffix that fits wins.
_KIND_OF_SUFFIX: dict[str, str] = {
    # BERT, RoBERTa, MiniLM, ELECTRA
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "crossattention.self.query": "cross_q",
    "crossattention.self.key": "cross_k",
    "crossattention.self.value": "cross_v",
    "crossattention.output.dense": "cross_o",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    # DistilBERT
    "attention.q_lin": "q",
    "attention.k_lin": "k",
    "attention.v_lin": "v",
    "attention.out_lin": "o",
    "ffn.lin1": "fc1",
    "ffn.lin2": "fc2",
    # OPT, BART, Llama, Mistral, Qwen
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "self_attn.o_proj": "o",
    "encoder_attn.q_proj": "cross_q",
    "encoder_attn.k_proj": "cross_k",
    "encoder_attn.v_proj": "cross_v",
    "encoder_attn.out_proj": "cross_o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "fc1",
    "mlp.down_proj": "fc2",
    # GPT-2: query, key and value are one matrix
    "attn.c_attn": "qkv",
    "attn.c_proj": "o",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
    # T5: `wi_0` passes through the activation, `wi_1` does not
    "SelfAttention.q": "q",
    "SelfAttention.k": "k",
    "SelfAttention.v": "v",
    "SelfAttention.o": "o",
    "EncDecAttention.q": "cross_q",
    "EncDecAttention.k": "cross_k",
    "EncDecAttention.v": "cross_v",
    "EncDecAttention.o": "cross_o",
    "DenseReluDense.wi": "fc1",
    "DenseReluDense.wi_0": "gate",
    "DenseReluDense.wi_1": "fc1",
    "DenseReluDense.wo": "fc2",
}

ORDER = (
    *("qkv", "q", "k", "v", "o"),
    *("cross_q", "cross_k", "cross_v", "cross_o"),
    *("gate", "fc1", "fc2"),
)
"""Kinds in the order in which a layer uses them."""


def kind_of(name: str) -> str:
    """Return the paper's word for a projection, or the last part of its name."""
    parts = name.split(".")
    for start in range(len(parts)):
        kind = _KIND_OF_SUFFIX.get(".".join(parts[start:]))
        if kind is not None:
            return kind
    return parts[-1]


def layer_number(name: str) -> int:
    """Return the first number in a dotted name, 0 if there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)
_HUB_CACHE = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?", re.ASCII)
"""A folder in which the hub's own programs keep a model; what lies in it is named by digests."""
_URL = re.compile(r"[A-Za-z][\w+.-]+://[^/?#]*([^?#]*).*", re.ASCII)
_DRIVE = re.compile(r"^[A-Za-z]:")
_IS_PLACE = re.compile(r"/(home|root|Users|mnt|tmp)/|~[\w.-]*/|[A-Za-z]:[/\\]|\\\\", re.ASCII)
_NAMES_PLACE = re.compile(r"(?:^|_)(?:path|dir|folder|file)(?:$|_)")


def may_be_on_hub(name: str) -> bool:
    """Return whether a name has the form of the hub's: `MODEL` or `OWNER/MODEL`."""
    return _HUB_ID.fullmatch(name) is not None


def public_name(name: str | None) -> str | None:
    """Return a model's name without the folders of this machine; None if they were all of it.

    An id of the hub, `MODEL` or `OWNER/MODEL`, stays as it is. Of anything else, such as a path of
    any system or an address, the last part stays, or the id if it leads into the hub's cache.
    """
    if name is None or _HUB_ID.fullmatch(name):
        return name
    url, path = _URL.fullmatch(name), _DRIVE.sub("", name.strip())
    parts = [p for p in re.split(r"[/\\]", url[1] if url else path) if p not in ("", ".")]
    cached = next((m for part in parts if (m := _HUB_CACHE.fullmatch(part))), None)
    if cached is not None:
        return "/".join(part for part in cached.groups() if part)
    return parts[-1] if parts and parts[-1] != ".." and not parts[-1].startswith("~") else None


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which files and folders of this machine have public names.

    They are told by the names of their fields, or by where they lie.
    """
    return {key: _public_value(key, value) for key, value in config.items()}


def _public_value(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return public_config(value)
    if isinstance(value, list | tuple):
        return [_public_value(key, part) for part in value]
    is_place = isinstance(value, str) and (_NAMES_PLACE.search(key) or _IS_PLACE.match(value))
    return public_name(value) if is_place else value
