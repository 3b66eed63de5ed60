"""The base model in a folder: its fingerprint, and the model under the class that was adapted."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rankcast.codec.container import Container
from rankcast.codec.formats.base_folder import BaseFolder, no_folder
from rankcast.codec.formats.peft_names import PREFIX, split_expert
from rankcast.codec.header import BaseModel, Header, same_base
from rankcast.errors import ConfigError, ModelError, RankcastError
from rankcast.records import Projection

_HEADS = {
    "SEQ_CLS": ("SequenceClassification", "ImageClassification", "AudioClassification"),
    "TOKEN_CLS": ("TokenClassification",),
    "QUESTION_ANS": ("QuestionAnswering",),
    "CAUSAL_LM": ("CausalLM", "ImageTextToText"),
    "SEQ_2_SEQ_LM": ("Seq2SeqLM", "SpeechSeq2Seq"),
}
"""PEFT's words for tasks, and the `AutoModelFor…` for them."""
_ENDINGS = {
    "CAUSAL_LM": ("CausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "SEQ_2_SEQ_LM": ("ForConditionalGeneration", "MTModel"),
}
"""How classes for them end, where not as the `AutoModelFor…` do."""
_UNSAID = ("ImageClassification", "AudioClassification", "CausalLM", "Seq2SeqLM")
"""Heads to try where the adapter names no task."""


@dataclass(frozen=True)
class Adapted:
    """What an adapter says of the model that it was trained on.

    Attributes:
        task_type: PEFT's word for its task.
        names: of the modules that it adapts, where they are known under no other names.
        shapes: of the tensors that it brings, by name.
        own: those of which the model may have none.
    """

    task_type: str | None = None
    names: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    @classmethod
    def of(cls, header: Header) -> Adapted:
        """Return what a file says."""
        plain = {m.name: m.name.replace(".base_layer.", ".") for m in header.modules}
        plain |= {name: own.removeprefix(PREFIX) for name, own in plain.items()}
        return cls(
            header.task.get("task_type"),
            adapted_names(header.projections, header.config),
            {plain[m.name]: m.shape for m in header.modules},
            frozenset(plain[m.name] for m in header.modules if m.carriage == "own"),
        )


def adapted_names(projections: Sequence[Projection], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return names of modules that say which class was adapted.

    Args:
        projections: of the adapter.
        config: see `AdapterTensors.config`; with `target_modules`, a class may know others.
    """
    if "target_modules" in config:
        return ()
    return tuple(p.name for p in projections if split_expert(p.name)[1] is None)


def base_fingerprint_of_folder(
    folder: str | os.PathLike[str], task_type: str | None = None, names: Sequence[str] = ()
) -> str:
    """Return what `base_fingerprint` gives for the model in a folder once it is loaded.

    Args:
        folder: of the base model.
        task_type: see `BaseFolder.fingerprint`.
        names: likewise.

    Raises:
        ModelError: no whole model there, or no torch where the files alone leave a doubt.
    """
    base = BaseFolder.open(folder)
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if not has_torch or base.doubt(task_type, names) is None:
        return base.fingerprint(task_type, names)
    from rankcast.adapters.fingerprint import base_fingerprint, base_tensors  # noqa: PLC0415 torch

    model, absent = _load(base.path, Adapted(task_type, tuple(names)))
    drawn = absent & {name for name, _ in model.named_parameters()}
    inside = {id(tensor) for _, tensor in base_tensors(model)}
    random = sorted(name for name in drawn if id(model.get_parameter(name)) in inside)
    if random:
        raise ModelError(_drawn(base.path, model, random))
    return base_fingerprint(model)


def base_fingerprints_of_folder(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return every fingerprint that the model in a folder may have for an adapter of some task.

    Raises:
        ModelError: see `base_fingerprint_of_folder`.
    """
    return BaseFolder.open(folder).fingerprints() or (base_fingerprint_of_folder(folder),)


def with_base(container: Container, folder: Path) -> Container:
    """Return a file that names the model in a folder by its fingerprint.

    Raises:
        ModelError: it names another one, or the folder's fingerprint is not known.
    """
    header = container.header
    task = header.task.get("task_type")
    base = identified(folder, header.base, task, header.projections, header.config)
    known = replace(header.base, fingerprint=base.fingerprint)
    return replace(container, header=replace(header, base=known))


def identified(
    folder: Path,
    known: BaseModel,
    task_type: str | None,
    projections: Sequence[Projection],
    config: Mapping[str, Any],
) -> BaseModel:
    """Return the base model in a folder with its fingerprint.

    Args:
        folder: of the base model.
        known: what the adapter says of it.
        task_type: see `BaseFolder.fingerprint`.
        projections: see `adapted_names`.
        config: likewise.

    Raises:
        ModelError: the adapter is of another model, or the folder's fingerprint is not known.
    """
    check_fits(folder, projections)
    found = base_fingerprint_of_folder(folder, task_type, adapted_names(projections, config))
    if known.fingerprint is not None and not same_base(known.fingerprint, found):
        raise ModelError(
            f"The adapter was made for {known.name or 'another model'} (fingerprint "
            f"{str(known.fingerprint)[:12]}…), and {folder} holds another one ({found[:12]}…)."
        )
    return BaseModel(known.name or str(folder), found)


def check_fits(folder: Path, projections: Sequence[Projection]) -> None:
    """Raise ModelError for an adapter of modules that a folder's base model has not; no torch."""
    base = BaseFolder.open(folder)
    for p in projections:
        base.check_fits(split_expert(p.name)[0], p.d_in, p.d_out)


def load_base(folder: Path, adapted: Adapted) -> Any:
    """Load the base model under the class that an adapter was trained on, in its own precision.

    Raises:
        ConfigError: no model in the folder that can be loaded.
        ModelError: no class that has what the adapter adapts, or weights that neither the folder
            nor the adapter has.
    """
    model, absent = _load(folder, adapted)
    if absent - set(adapted.shapes):
        raise ModelError(_drawn(folder, model, sorted(absent - set(adapted.shapes))))
    return model


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what failed in the words of an error of ours, whatever another library raised.

    Raises:
        ModelError: it failed.
    """
    try:
        yield
    except RankcastError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {type(error).__name__}: {error}") from error


def _load(folder: Path, adapted: Adapted) -> tuple[Any, set[str]]:
    """Return the model, and the names of weights that were not in the folder."""
    import transformers  # noqa: PLC0415 takes seconds

    if not Path(folder).is_dir():  # else the hub would be asked
        raise ConfigError(no_folder(folder))
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{folder} holds an adapter beside the model, and transformers would load both. Move "
            f"one of them to a folder of its own."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"{folder} holds no base model that can be loaded ({error}).") from error
    named = str((config.architectures or [""])[0])
    if getattr(config, "auto_map", None) and not hasattr(transformers, named):
        raise ConfigError(
            f"{folder} holds a {named}, whose code comes with it; rankcast runs no code of models. "
            f"Export the adapter with --format peft and merge it with PEFT."
        )
    cls, config = _class(transformers, config, adapted, folder)
    quantised = getattr(config, "quantization_config", None)
    how = " (it is quantised; name the base model in full precision)" if quantised else ""
    with explained(f"{folder} cannot be loaded as {cls.__name__}{how}"):
        model, info = cls.from_pretrained(
            folder, config=config, dtype="auto", trust_remote_code=False, local_files_only=True,
            ignore_mismatched_sizes=bool(adapted.shapes), output_loading_info=True,
        )  # fmt: skip
    odd = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
    return model.eval(), set(info["missing_keys"]) | set(odd)


def _class(transformers: Any, config: Any, adapted: Adapted, folder: Path) -> tuple[Any, Any]:
    """Return the first class that has what the adapter adapts, and its configuration.

    The number of labels follows the adapter's head, whose last layer is the one that a class would
    have in another shape.
    """
    reasons = []
    for cls in _candidates(transformers, config, adapted.task_type):
        own = copy.deepcopy(config)
        odd, why = _misfits(cls, own, adapted)
        labels = {adapted.shapes[name][:1] for name in odd}
        if odd and len(labels) == 1 and labels != {()}:
            (own.num_labels,) = next(iter(labels))
            odd, why = _misfits(cls, own, adapted)
        if why is None and not odd:
            return cls, own
        reasons.append(why or f"{cls.__name__} has {odd[0]} in another shape")
    raise ModelError(
        f"The adapter does not fit the {config.model_type} in {folder}: "
        f"{'; '.join(dict.fromkeys(reasons))}. Name the base model that it was trained on, saved "
        f"from the same class."
    )


def _candidates(transformers: Any, config: Any, task_type: str | None) -> list[Any]:
    """Return classes to load a model under, the likeliest first."""
    heads = _HEADS.get(task_type or "", ())
    autos = [getattr(transformers, f"AutoModelFor{head}", None) for head in heads or _UNSAID]
    named = getattr(transformers, str((config.architectures or [""])[0]), None)
    suits = named is not None and named.__name__.endswith(_ENDINGS.get(task_type or "", heads))
    order = [*autos, named, transformers.AutoModel]
    if suits or not heads:
        order = [named, transformers.AutoModel, *autos]
    if task_type == "FEATURE_EXTRACTION":
        order = [transformers.AutoModel, named]
    kind = type(config)
    return [
        cls for cls in order
        if cls is not None and kind in getattr(cls, "_model_mapping", (kind,))
    ]  # fmt: skip


def _misfits(cls: Any, config: Any, adapted: Adapted) -> tuple[list[str], str | None]:
    """Return which tensors a class has in another shape, and what it lacks, without its weights."""
    import torch  # noqa: PLC0415 takes seconds

    with torch.device("meta"), explained(f"{cls.__name__} cannot be built"):
        build = getattr(cls, "from_config", None) or cls._from_config
        model = build(copy.deepcopy(config))
    modules, tensors = dict(model.named_modules()), model.state_dict()
    lacking = [name for name in adapted.names if name not in modules]
    lacking += [name for name in adapted.shapes if name not in tensors and name not in adapted.own]
    if lacking:
        return [], f"{type(model).__name__} has no {lacking[0]}"
    shared = [name for name in adapted.shapes if name in tensors]
    return [name for name in shared if tuple(tensors[name].shape) != adapted.shapes[name]], None


def _drawn(folder: Path, model: Any, names: Sequence[str]) -> str:
    """Return the words for weights that would be drawn at random."""
    return (
        f"{folder} lacks {', '.join(names[:3])}{' and more' if len(names) > 3 else ''} of a "
        f"{type(model).__name__}, and the adapter does not bring it. Name a folder that has the "
        f"whole model that the adapter was trained on."
    )
