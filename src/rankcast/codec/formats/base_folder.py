"""A base model's folder as `save_pretrained` writes it, read one tensor at a time, without torch.

The fingerprint is that of the model in memory (`rankcast.adapters.fingerprint.base_fingerprint`),
for the families whose files name every parameter as the model's class does. Where classes rename
or join tensors as they load, or where the files leave a doubt, there is none here:
`rankcast.packaging.base_model.base_fingerprint_of_folder` then loads the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankcast.codec.formats.tensor_file import TensorEntry, TensorFile
from rankcast.codec.quantiser import Float32Array
from rankcast.errors import CodecError, ModelError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HEADS = {
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "ConditionalGeneration",
    "FEATURE_EXTRACTION": "",
}
"""PEFT's words for tasks, and how a class for each ends: `…For` and this; a bare model for none."""
_FAMILIES = {
    "model": (
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
        "olmo", "olmo2", "granite", "starcoder2", "stablelm", "smollm3", "cohere", "helium", "glm4",
        "opt", "modernbert", "bart", "mbart", "whisper",
    ),
    "transformer": ("gpt2", "gpt_neo", "gptj", "bloom", "falcon"),
    "roberta": ("roberta", "xlm-roberta", "camembert"),
    "deberta": ("deberta-v2",),
    "": ("t5", "mt5"),
}  # fmt: skip
PREFIXES = {kind: prefix for prefix, kinds in _FAMILIES.items() for kind in kinds} | {
    kind: kind for kind in ("bert", "distilbert", "electra", "albert", "mpnet", "gpt_neox")
}
"""Families whose files name parameters as classes do, and the `base_model_prefix` of these."""
_POOLED = {
    **dict.fromkeys(
        ("bert", "albert"),
        ("", "MultipleChoice", "NextSentencePrediction", "PreTraining", "SequenceClassification"),
    ),
    **dict.fromkeys((*_FAMILIES["roberta"], "mpnet"), ("", "MultipleChoice")),
}
"""Heads under which a family has a pooler; under the others it ignores one in the files."""
_WHOLE = {
    **dict.fromkeys(("t5", "mt5", "whisper"), ("", "ConditionalGeneration")),
    **dict.fromkeys(
        ("bart", "mbart"),
        ("", "ConditionalGeneration", "SequenceClassification", "QuestionAnswering"),
    ),
}
"""Heads under which a family has both its encoder and its decoder, and below its prefix."""
_OLD = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_SHARED = ("t5", "mt5", "bart", "mbart")
"""Families whose encoder and decoder share one embedding."""
_EMBEDDING = re.compile(r"(^|\.)(shared|(en|de)coder\.embed_tokens)\.weight$")
_IGNORED = re.compile(r"(.*\.)?((original_)?inv_freq|masked_bias|position_ids|embed_positions)")
_CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""In T5's published files, and no parameter of the class."""
_HEAD_NAMES = (
    "lm_head", "cls", "classifier", "score", "qa_outputs", "proj_out", "pre_classifier", "head",
)  # fmt: skip
_DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "num_hidden_groups",
)  # fmt: skip
_WIDER = {"float32": ("F32", "F16", "BF16"), "float16": ("F16",), "bfloat16": ("BF16",)}
"""Which stored numbers a precision holds exactly."""


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """A base model of which nothing but names is in memory.

    Attributes:
        path: of the folder.
        config: its `config.json`.
        files: where each tensor is, by the name that it has there.
    """

    path: Path
    config: Mapping[str, Any]
    files: Mapping[str, TensorFile]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> BaseFolder:
        """Return what a folder holds.

        Raises:
            ModelError: no model there, or one whose weights are not in safetensors, are damaged or
                incomplete.
        """
        folder = Path(path)
        config = _read_json(folder, "config.json")
        try:
            if (folder / WEIGHTS).is_file():
                file = TensorFile.open(folder / WEIGHTS)
                return cls(folder, config, dict.fromkeys(file.entries, file))
            return cls(folder, config, _shards(folder))
        except CodecError as error:
            raise ModelError(f"{folder} is no whole model: {error}") from error

    def names(self) -> tuple[str, ...]:
        """Return the names of the tensors in the files, in order."""
        return tuple(sorted(self.files))

    def weight(self, name: str) -> Float32Array:
        """Return the weight of a module, as it is stored (GPT-2's are input-first).

        Args:
            name: of the module in the model's class. Files with and without the class's prefix, and
                either order of `language_model` and `model` in models that see, are understood.

        Raises:
            ModelError: the files have no such weight, or not in a floating-point format.
        """
        key = self._key_of(name)
        if key is None:
            raise ModelError(
                f"{self.path} has no weight of {name}. Name the folder of the base model that the "
                f"adapter was trained on, saved with safetensors."
            )
        if not self._entry(key).is_float:
            raise ModelError(
                f"{key} in {self.path} is quantised ({self._entry(key).dtype}). Name the folder of "
                f"the base model in float32, float16 or bfloat16."
            )
        return self._array(key)

    def check_fits(self, name: str, d_in: int, d_out: int) -> None:
        """Raise if a module is not here as an adapter has it; not if it may have another name.

        Raises:
            ModelError: a weight of another shape, or a layer or module that this model has not.
        """
        key, kind = self._key_of(name), str(self.config.get("model_type"))
        first = re.sub(r"\.\d+\.", ".0.", name, count=1)
        shape = self._entry(key).shape if key and self._entry(key).is_float else ()
        if len(shape) == 2 and sorted(shape) != sorted((d_in, d_out)):
            what = f"maps {d_in} to {d_out}, and the model's has the shape {shape}"
        elif key is None and first != name and self._key_of(first):
            what = f"is not there, other than {first}"
        elif key is None and kind in PREFIXES and not {*_HEAD_NAMES, "pooler"} & {*name.split(".")}:
            what = f"is no module of this {kind}"
        else:
            return
        raise ModelError(
            f"The adapter does not fit {self.path}: {name} {what}. Name the model that it was "
            f"trained on."
        )

    def fingerprint(self, task_type: str | None = None, names: Sequence[str] = ()) -> str:
        """Return the SHA-256 of the frozen weights, in hexadecimal, a piece at a time.

        Args:
            task_type: PEFT's word for the adapter's task, and
            names: of the modules that it adapts: they say under which head the model is loaded;
                without them its configuration does.

        Raises:
            ModelError: the files leave a doubt (`doubt`), or cannot be read.
        """
        reason = self.doubt(task_type, names)
        if reason:
            raise ModelError(
                f"The fingerprint of {self.path} is not known without torch: {reason}. Install it "
                f"with pip install 'rankcast[train]', or pack where it is installed."
            )
        digest = hashlib.sha256()
        for name, key in sorted(self._parameters(self._head(task_type, names)).items()):
            digest.update(f"{name}:{self._entry(key).shape};".encode())
            for piece in self._pieces(key):
                digest.update(piece.data)
        return digest.hexdigest()

    def fingerprints(self) -> tuple[str, ...]:
        """Return those that the model has under one head or another; none if all are in doubt.

        Raises:
            ModelError: the files cannot be read.
        """
        tasks: dict[tuple[str, ...], str | None] = {}
        for task in (None, *HEADS):
            if self.doubt(task) is None:
                tasks.setdefault(tuple(self._parameters(self._head(task, ()))), task)
        return tuple(map(self.fingerprint, tasks.values()))

    def doubt(self, task_type: str | None = None, names: Sequence[str] = ()) -> str | None:
        """Return why the files alone do not say what the model in memory holds; None if they do.

        Args:
            task_type: see `fingerprint`.
            names: likewise.
        """
        kind, head = str(self.config.get("model_type")), self._head(task_type, names)
        if self.config.get("quantization_config"):
            return "it is quantised"
        if kind not in PREFIXES:
            return f"models of type {kind} may be renamed as they are loaded"
        if head not in _WHOLE.get(kind, (head,)):
            return f"a {kind} for {head} is only a part of the files"
        parameters = self._parameters(head)
        return (
            self._doubt_about_precision(parameters.values())
            or self._doubt_about_head(kind, head, parameters)
            or self._doubt_about_ties(kind, parameters)
            or _doubt_about_names(parameters, {self.config.get(key) for key in _DEPTHS})
        )

    def _doubt_about_precision(self, keys: Iterable[str]) -> str | None:
        """Return whether numbers are rounded as they are loaded."""
        stored = {self._entry(key).dtype for key in keys}
        wanted = self.config.get("dtype") or self.config.get("torch_dtype")
        held = _WIDER.get(str(wanted).removeprefix("torch."), ()) if wanted else stored
        if not stored <= set(held) or (len(stored) > 1 and not wanted):
            return f"it is stored as {' and '.join(sorted(stored))} and loaded as {wanted}"
        return None

    def _doubt_about_head(self, kind: str, head: str, parameters: Iterable[str]) -> str | None:
        """Return what of the head, which is no part of the base, is not clear."""
        parts = {name.partition(".")[0] for name in parameters}
        if PREFIXES[kind] and not parts.isdisjoint(_HEAD_NAMES):
            return "its files mix names with and without the prefix"
        if head in _POOLED.get(kind, ()) and "pooler" not in parts:
            return "its files lack the pooler"
        return None

    def _doubt_about_ties(self, kind: str, parameters: Mapping[str, str]) -> str | None:
        """Return whether files and configuration disagree about which embeddings are one."""
        untied = self.config.get("tie_word_embeddings") is False
        if "lm_head.weight" in parameters and not untied:
            return "its lm_head is tied in its configuration and not in its files"
        if kind in ("bart", "mbart") and untied:
            return "its embeddings are not tied"
        shared = [key for key in self.files if kind in _SHARED and _EMBEDDING.search(key)]
        if len({self._digest(key) for key in shared}) > 1:
            return "its embeddings differ between encoder and decoder"
        return None

    def _parameters(self, head: str) -> dict[str, str]:
        """Return the names below the prefix, and the names in the files that stand for them."""
        kind = str(self.config.get("model_type"))
        inside = next((p for p in _inside(kind) if any(k.startswith(p) for k in self.files)), "")
        found = {}
        for key in sorted(self.files):
            name = key.removeprefix(inside)
            for old, new in _OLD:
                name = name.replace(old, new)
            if key.startswith(inside) and not self._is_ignored(kind, head, name, key):
                shared = kind in _SHARED and _EMBEDDING.search(name)
                found["shared.weight" if shared else name] = key
        return found

    def _is_ignored(self, kind: str, head: str, name: str, key: str) -> bool:
        """Whether a tensor is a buffer, or one that the class drops."""
        entry = self._entry(key)
        if _IGNORED.fullmatch(name) or name == _CROSS_BIAS:
            return True
        if not entry.is_float and not name.endswith(".weight"):
            return True
        if name.endswith(".bias") and len(entry.shape) > 1:  # GPT-2's causal mask
            return True
        if name == "lm_head.weight" and not PREFIXES[kind]:
            return not head or self._digest(key) == self._digest("shared.weight")
        return name.startswith("pooler.") and head not in _POOLED.get(kind, ())

    def _head(self, task_type: str | None, names: Sequence[str]) -> str:
        """Return how the class ends under which the model is loaded; nothing for a bare model."""
        inside = _inside(str(self.config.get("model_type")))
        if names and inside and not names[0].startswith(inside):
            return ""
        if task_type in HEADS and (HEADS[task_type] or not names):
            return HEADS[task_type]
        named = str((self.config.get("architectures") or [""])[0])
        return "CausalLM" if named.endswith("LMHeadModel") else named.partition("For")[2]

    def _key_of(self, name: str) -> str | None:
        """Return the name in the files of a module's weight."""
        seen = (("model.language_model.", "language_model.model."), (".language_model.", "."))
        names = {name: None}
        for one, other in seen:
            names |= {name.replace(one, other, 1): None, name.replace(other, one, 1): None}
        for n in names:
            for key in (f"{n}.weight", f"{n.partition('.')[2]}.weight"):
                if key in self.files:
                    return key
        deeper = [k for k in self.files if k.partition(".")[2] == f"{name}.weight"]
        return deeper[0] if len(deeper) == 1 else None

    def _entry(self, key: str) -> TensorEntry:
        return self.files[key].entries[key]

    def _array(self, key: str) -> Float32Array:
        try:
            return self.files[key].array(key)
        except CodecError as error:
            raise ModelError(f"{self.path} is no whole model: {error}") from error

    def _digest(self, key: str) -> bytes:
        digest = hashlib.sha256()
        for piece in self._pieces(key) if key in self.files else ():
            digest.update(piece.data)
        return digest.digest()

    def _pieces(self, key: str) -> Iterator[Float32Array]:
        """Yield the numbers of a tensor in order, some at a time."""
        try:
            yield from self.files[key].pieces(key)
        except CodecError as error:
            raise ModelError(f"{self.path} is no whole model: {error}") from error


def _inside(kind: str) -> tuple[str, ...]:
    """Return how names begin that are below the prefix of a family's classes; nothing: all are."""
    prefix = PREFIXES.get(kind, "")
    others = ("transformer.",) if prefix == "model" else ()  # for answers to questions
    return (f"{prefix}.", *others) if prefix else ()


def _doubt_about_names(names: Iterable[str], depths: set[Any]) -> str | None:
    """Return what is odd about the names of parameters, which families have weights and biases.

    Every layer but the first has the same ones, and there are as many as the configuration says.
    """
    layers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        if name.rpartition(".")[2] not in ("weight", "bias"):
            return f"{name} may be a parameter or not"
        parts = re.match(r"(.*?\.)(\d+)\.(.*)", name)
        if parts:
            layers[parts[1]][int(parts[2])].add(parts[3])
    for stem, found in layers.items():
        alike = len({frozenset(found[i]) for i in found if i}) <= 1
        if not alike or set(found) != set(range(len(found))) or len(found) not in depths:
            return f"{stem}* are not the layers that its configuration describes"
    return None if layers else "it has no layers"


def _shards(folder: Path) -> dict[str, TensorFile]:
    """Return where each tensor of a model in several files is."""
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}. Save the model with save_pretrained, "
            f"which writes safetensors."
        )
    places = _read_json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise ModelError(f"{folder / INDEX} does not say where tensors are; save the model again.")
    files = {name: TensorFile.open(folder / name) for name in sorted(set(places.values()))}
    found = {key: file for file in files.values() for key in file.entries}
    if {key: file.path.name for key, file in found.items()} != places:
        raise ModelError(f"{folder / INDEX} does not fit its files; save the model again.")
    return found


def no_folder(folder: str | os.PathLike[str]) -> str:
    """Return the words for a base model that is not there."""
    return (
        f"There is no base model in {folder}: no such folder, and the hub is not asked. Name the "
        f"folder that has it; hf download NAME --local-dir FOLDER fetches one from the hub."
    )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(no_folder(folder))
    try:
        plain = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        why = f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ModelError(
            f"{folder} holds no base model ({why}). Name the folder that save_pretrained wrote."
        ) from error
    if not isinstance(plain, dict):
        raise ModelError(f"{folder} holds no base model: {name} is no description of one.")
    return plain
