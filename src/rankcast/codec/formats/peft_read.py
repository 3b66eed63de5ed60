"""Read adapters that PEFT saved, one projection at a time and without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.formats.peft_config import (
    CONFIG,
    SELECTION,
    changes_base,
    general_config,
    general_reason,
    is_off,
    rank_of,
    read_config,
    saved_in_full,
    scale_of,
)
from rankcast.codec.formats.peft_initial import Weights, check_source, computed, difference
from rankcast.codec.formats.peft_names import (
    PREFIX,
    NamedTensors,
    bare,
    expert_name,
    is_embedding,
    is_parameter,
    may_be_renamed,
    modules_saved,
    place,
    saved_module,
    unwrapped,
)
from rankcast.codec.formats.tensor_file import TensorFile
from rankcast.codec.header import DTYPES
from rankcast.codec.spool import Collector
from rankcast.codec.tensors import AdapterTensors, Carriage, Factors
from rankcast.errors import CodecError, ModelError
from rankcast.naming import kind_of, layer_number
from rankcast.records import Projection

KEPT_IN_MEMORY = 2**22
"""Numbers of an adapter, 16 MiB in float32; those of larger ones are in a temporary file."""
WEIGHTS = "adapter_model.safetensors"
_BIAS, _OUTPUT = ".lora_B.bias", ".base_layer.weight"
_PICKLED = "adapter_model.bin"
_CONVERT = """
    import torch, safetensors.torch
    tensors = torch.load("{0}", map_location="cpu", weights_only=True)
    tensors = {{name: t.clone().contiguous() for name, t in tensors.items()}}
    safetensors.torch.save_file(tensors, "{1}")"""


@dataclass(frozen=True)
class PeftSource:
    """What beside its folder helps to read an adapter.

    Attributes:
        base: the model that it adapts.
        initial: folder of the adapter as it was before training.
        embeddings: accept embeddings that were trained in full, which are large.
    """

    base: Weights | None = None
    initial: str | os.PathLike[str] | None = None
    embeddings: bool = False


def read_peft(
    directory: str | os.PathLike[str], source: PeftSource | None = None
) -> tuple[AdapterTensors, dict[str, Any]]:
    """Return an adapter that PEFT saved, and its configuration.

    Of a LoRA or AdaLoRA, the scale of every projection (alpha over rank, or over its root for
    rank-stabilised LoRA, each with its pattern) is multiplied in; components are sorted by the
    singular values of ΔW. What cannot be expressed so is returned in general form
    (`AdapterTensors.is_general`).

    Args:
        directory: of the adapter.
        source: what else is known.

    Raises:
        CodecError: no such adapter, a damaged one, or one that cannot be carried; names what of it.
        ModelError: the base model is needed and lacks a weight.
    """
    return _Reading.of(Path(directory), source or PeftSource()).adapter()


@dataclass(frozen=True)
class _Reading:
    """An adapter's files and what is known beside them."""

    folder: Path
    config: dict[str, Any]
    file: TensorFile
    names: Mapping[str, str]
    source: PeftSource

    @classmethod
    def of(cls, folder: Path, source: PeftSource) -> _Reading:
        """Open the files of a folder."""
        config, file = read_config(folder / CONFIG), _open(folder)
        return cls(folder, config, file, _once(file, unwrapped(file.entries)), source)

    def adapter(self) -> tuple[AdapterTensors, dict[str, Any]]:
        """Return the adapter in the form that suits it."""
        shapes = {name: self.file.entries[stored].shape for name, stored in self.names.items()}
        reason = general_reason(self.config, shapes)
        if changes_base(self.config):
            check_source(self.config, self.source.base, self.source.initial)
            if reason is not None:
                raise CodecError(
                    f"The adapter has init_lora_weights: {self.config['init_lora_weights']}, which "
                    f"changes the base model, and is more than a low-rank one ({reason}): not "
                    f"carried."
                )
        elif self.source.initial is not None:
            raise CodecError(
                f"--initial-adapter is for initialisations that change the base model, and this "
                f"adapter has init_lora_weights: {self.config.get('init_lora_weights')}."
            )
        if reason is None:
            named = NamedTensors.of(self.names)
            _check_parts(named, self.config)
            beside = self._beside(named)
            if named.factors:
                tensors = self._low_rank(named, beside)
                if any(sizes.norms.any() for sizes in tensors.component_sizes):
                    return tensors, self.config
            if not beside:
                raise CodecError(
                    "The adapter adds nothing: every lora_B or lora_A is zero, or lora_alpha is, "
                    "or there are none. Is it a checkpoint of step 0, or did no input reach the "
                    "adapted modules?"
                )
        return self._general(), self.config

    def _general(self) -> AdapterTensors:
        """Return every tensor under its own name, with the configuration."""
        config = general_config(self.config)
        names = self._without_copies(self.names)
        arrays = ((name, self._array(stored)) for name, stored in names.items())
        modules = Collector(KEPT_IN_MEMORY).tensors(arrays)
        return AdapterTensors((), (), modules, dict.fromkeys(names, "own"), config)

    def _beside(self, named: NamedTensors) -> dict[str, Carriage]:
        """Return the tensors beside the factors and how each of them travels.

        Raises:
            CodecError: one that does not belong to a LoRA.
        """
        biases = [module for module, parts in named.factors.items() if "B.bias" in parts]
        own = [*(f"{module}{_BIAS}" for module in sorted(biases, key=place)), *named.tokens]
        carriage: dict[str, Carriage] = dict.fromkeys(own, "own")
        saved = saved_in_full(self.config)
        of_vocabulary = self._of_vocabulary(named.others)
        for name in self._without_copies(named.others):
            in_full = saved_module(name, saved) is not None
            if not in_full and name not in of_vocabulary:
                raise CodecError(
                    f"The adapter has {name}, which is neither a LoRA nor of a module in "
                    f"modules_to_save (a trained bias, or a part of the base model): not carried."
                )
            carriage[name] = "full" if in_full else "own"
        return carriage

    def _low_rank(self, named: NamedTensors, beside: Mapping[str, Carriage]) -> AdapterTensors:
        """Return factors, scale included, and what travels beside them."""
        projections: list[Projection] = []

        def factors() -> Iterator[Factors]:
            for projection, pair in self._projections(named):
                projections.append(projection)
                yield pair

        collector = Collector(KEPT_IN_MEMORY)
        in_full = [name for name, how in beside.items() if how == "full"]
        return AdapterTensors(
            factors=collector.factors(factors()),  # first: it finds the projections
            projections=tuple(projections),
            modules=collector.tensors((name, self._own(named, name)) for name in beside),
            carriage=beside,
            config=self._kept_config(named, in_full),
        )

    def _own(self, named: NamedTensors, name: str) -> NDArray[Any]:
        """Return a tensor beside the factors; a bias with its scale."""
        module = name.removesuffix(_BIAS)
        if module == name or module not in named.factors:
            return self._array(named.tokens.get(name) or named.others[name])
        bias = self._array(named.factors[module]["B.bias"])
        return np.float32(scale_of(self.config, module)) * bias

    def _kept_config(self, named: NamedTensors, in_full: list[str]) -> dict[str, Any]:
        """Return the fields that whoever writes the adapter cannot infer from its tensors."""
        config = self.config
        again = ["revision", "target_parameters", "trainable_token_indices"]
        if any("B.bias" in parts for parts in named.factors.values()):
            again.append("lora_bias")
        if may_be_renamed(named.factors):
            again += SELECTION
        kept = {n: config[n] for n in again if not is_off(n, config.get(n))}
        saved = saved_in_full(config)
        modules = sorted({saved_module(name, saved) or "" for name in in_full})
        return kept if modules == modules_saved(in_full) else kept | {"modules_to_save": modules}

    def _projections(self, named: NamedTensors) -> Iterator[tuple[Projection, Factors]]:
        """Yield the factors of one projection after another, in the order of use."""
        initial = self._initial()
        for module in sorted(named.factors, key=place):
            for name, factors in self.factors(module, named.factors[module]):
                changed = factors
                if initial is not None:
                    parts = initial[1].factors.get(module, {})
                    before = dict(initial[0].factors(module, parts))
                    changed = difference(self.config, factors, before[name])
                elif changes_base(self.config) and self.source.base is not None:
                    before = computed(self.config, name, factors, self.source.base)
                    changed = difference(self.config, factors, before)
                ordered = changed.sorted()
                shape = ordered.right.shape[1], ordered.left.shape[0]
                yield Projection(name, layer_number(module), kind_of(module), *shape), ordered

    def _initial(self) -> tuple[_Reading, NamedTensors] | None:
        """Return the adapter as it was before training."""
        if self.source.initial is None:
            return None
        before = _Reading.of(Path(self.source.initial), PeftSource())
        return before, NamedTensors.of(before.names)

    def factors(self, module: str, parts: Mapping[str, str]) -> Iterator[tuple[str, Factors]]:
        """Yield B·scale and A of a module, or of each expert in a parameter of several.

        Raises:
            CodecError: a factor is missing or of another rank.
        """
        right, left = self._part(module, parts, "A"), self._part(module, parts, "B")
        if right.ndim != 2 or left.ndim != 2 or left.shape[1] != right.shape[0]:
            raise CodecError(
                f"{module} has factors of shapes {left.shape} and {right.shape}, which do not fit "
                f"together."
            )
        scale = scale_of(self.config, module)
        if self.config["peft_type"] == "ADALORA":
            values = self._part(module, parts, "E").reshape(-1)
            kept = int(self._array(parts["rank"])[0]) if "rank" in parts else len(values)
            scaled = (scale * left * values).astype(np.float32)
            yield module, Factors(scaled[:, :kept], right[:kept])
            return
        rank = rank_of(self.config, module)
        n_experts, odd = divmod(right.shape[0], rank)
        if odd or (n_experts > 1 and not is_parameter(module, self.config)):
            raise CodecError(
                f"{module} has rank {right.shape[0]} in {WEIGHTS} and {rank} by r or rank_pattern "
                f"in {CONFIG}."
            )
        if n_experts == 1:
            yield module, Factors((scale * left).astype(np.float32), right)
            return
        for expert in range(n_experts):
            rows = right[expert * rank : (expert + 1) * rank]
            columns = left[:, expert::n_experts]
            yield (
                expert_name(module, expert),
                Factors((scale * columns).astype(np.float32), np.ascontiguousarray(rows)),
            )

    def _part(self, module: str, parts: Mapping[str, str], part: str) -> NDArray[Any]:
        if part not in parts:
            raise CodecError(
                f"The adapter in {self.folder} lacks lora_{part} of {module}; save it again."
            )
        return self._array(parts[part])

    def _array(self, stored: str) -> NDArray[Any]:
        """Return a tensor that can be carried.

        Raises:
            CodecError: of a type that is not carried, empty, or not finite.
        """
        values = self.file.array(stored)
        if values.dtype.name not in DTYPES:
            raise CodecError(f"{stored} is stored as {values.dtype}; save it as a float.")
        if not values.size and self.config["peft_type"] != "ADALORA":  # which has ranks of 0
            raise CodecError(
                f"{stored} is empty, as tensors are that DeepSpeed or FSDP keep in shards. Gather "
                f"them before save_pretrained."
            )
        if not np.isfinite(values).all():
            raise CodecError(f"{stored} holds NaN or infinite weights; its training has diverged.")
        return values

    def _of_vocabulary(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return the tensors that PEFT may have copied from the base model.

        These are embeddings, output layers beside them, and what lies below a LoRA.
        """
        shapes = {n: self.file.entries[s].shape for n, s in names.items()}
        sizes = {shape for n, shape in shapes.items() if is_embedding(n)}
        listed = saved_in_full(self.config)

        def is_copy(name: str) -> bool:
            beside = name.endswith(".weight") and shapes[name] in sizes
            return (
                is_embedding(name)
                or name.endswith(_OUTPUT)
                or (beside and saved_module(name, listed) is None)
            )

        return {n: s for n, s in names.items() if is_copy(n)}

    def _without_copies(self, names: Mapping[str, str]) -> Mapping[str, str]:
        """Return names without those of tensors that the base model has likewise.

        PEFT writes embeddings and output layers, changed or not, once a LoRA is on one of them.

        Raises:
            CodecError: embeddings in full, for which nobody has asked.
        """
        copies = self._of_vocabulary(names)
        base = self.source.base
        if base is not None:
            same = {n for n, s in copies.items() if _equals_base(base, n, self.file.array(s))}
            names = {n: s for n, s in names.items() if n not in same}
            copies = {n: s for n, s in copies.items() if n not in same}
        if copies and not self.source.embeddings:
            sizes = {n: self.file.entries[s].n_bytes for n, s in copies.items()}
            share = sum(sizes.values()) / sum(e.n_bytes for e in self.file.entries.values())
            listed = ", ".join(f"{n} ({_size_words(size)})" for n, size in sizes.items())
            raise CodecError(
                f"The adapter has an embedding or output layer saved in full: {listed}, "
                f"{share:.0%} of the adapter. Pack it with --embeddings if it was trained. If not, "
                f"save the adapter with save_embedding_layers=False, or name the base model "
                f"(--base-model), so that what equals it is left out."
            )
        return names


def _once(file: TensorFile, names: Mapping[str, str]) -> dict[str, str]:
    """Return names without the second and third under which PEFT saves a module in full.

    With `save_embedding_layers` there are also the wrapper's, and the base model's own weight.
    """

    def is_another(name: str) -> bool:
        first = names.get(bare(name), names[name])
        return names[name] != first and (
            ".original_module." in name
            or np.array_equal(file.array(names[name]), file.array(first))
        )

    return {name: stored for name, stored in names.items() if not is_another(name)}


def _size_words(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"


def _equals_base(base: Weights, name: str, values: NDArray[Any]) -> bool:
    """Whether a tensor is the base model's own."""
    module = name.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    try:
        own = base.weight(module.removesuffix(".token_adapter"))
    except ModelError:
        return False
    return own.shape == values.shape and bool(np.array_equal(own, values))


def _check_parts(named: NamedTensors, config: Mapping[str, Any]) -> None:
    """Raise on parts of a LoRA that its configuration does not announce."""
    adaptive = config["peft_type"] == "ADALORA"
    for module, parts in named.factors.items():
        for part in ("E", "rank"):
            if part in parts and not adaptive:
                raise CodecError(f"{parts[part]} is of an AdaLoRA, and {CONFIG} describes a LoRA.")
        if "B.bias" in parts and not config.get("lora_bias"):
            raise CodecError(f"The adapter has {parts['B.bias']}, and lora_bias is not set.")
        if "A.bias" in parts or "E.bias" in parts:
            raise CodecError(f"The adapter has a bias in lora_A or lora_E of {module}: not known.")
    for name in named.others:
        if ".lora_" in name:
            what = "DoRA's magnitudes" if "magnitude" in name else "a part of a LoRA"
            raise CodecError(
                f"The adapter has {name}, {what}, which {CONFIG} does not announce: not carried."
            )
    if named.tokens and not config.get("trainable_token_indices"):
        name = next(iter(named.tokens))
        raise CodecError(f"The adapter has {name}, and trainable_token_indices is not set.")


def _open(folder: Path) -> TensorFile:
    """Return the adapter's weights.

    Raises:
        CodecError: not there, in another format, or damaged; says how to get them.
    """
    path = folder / WEIGHTS
    if path.is_file():
        return TensorFile.open(path)
    if (folder / _PICKLED).is_file():
        lines = _CONVERT.format(folder / _PICKLED, path)
        raise CodecError(
            f"{folder} has its weights in {_PICKLED}, PyTorch's own format, which can hold "
            f"programs and is not read. Convert it once:{lines}"
        )
    shards = sorted(p.name for p in folder.glob("adapter_model-*.safetensors"))
    if shards:
        raise CodecError(
            f"{folder} has its weights in {len(shards)} pieces ({shards[0]}, …), which PEFT reads "
            f"no more than this program. Save the adapter in one file, {WEIGHTS}."
        )
    raise CodecError(f"{path} is missing; save the adapter again.")
