"""Code an adapter, from a folder or in memory, as a container: `rankcast.pack`.

A folder needs no torch. An adapter in memory does, and so do measurements of what each prefix is
worth (`rankcast.packaging.measure`).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.codec.container import Container, load, pack_as_trained, pack_at_exponent
from rankcast.codec.formats import native, peft
from rankcast.codec.formats.base_folder import BaseFolder
from rankcast.codec.formats.gguf import read_base_config
from rankcast.codec.formats.peft_names import beyond_lora
from rankcast.codec.formats.tensor_file import TensorFile
from rankcast.codec.header import LARGEST_PARAMS, BaseModel
from rankcast.codec.losses import lost_energy
from rankcast.codec.packing import RELATIVE_STEPS, Quality, Source, exponent_of_quality
from rankcast.codec.planner import pack_planned, pack_within
from rankcast.codec.prefixes import prefixes_within
from rankcast.codec.successor import KEEP, pack_after
from rankcast.codec.target import pack_into
from rankcast.errors import CodecError, ConfigError, ModelError
from rankcast.link.capacity import rate_bps
from rankcast.link.costs import budget_bits as bits_before_deadline
from rankcast.link.rate_models import rate_model
from rankcast.packaging.texts import LevelTexts, OnPass, Texts
from rankcast.records import LinkState

if TYPE_CHECKING:
    from peft import PeftModel

    from rankcast.adapters.elastic import ElasticAdapter


@dataclass(frozen=True, slots=True)
class Cost:
    """What a file loses beside the adapter that it was made from.

    Attributes:
        lost_energy: share of the energy of its low-rank updates; None if it has none.
        loss: of the adapter as it was, on the validation texts [nats], or 0 where its divergence
            is measured; None if nobody measured.
        accuracy: likewise, a share.
    """

    lost_energy: float | None
    loss: float | None = None
    accuracy: float | None = None


def pack(
    adapter: str | os.PathLike[str] | PeftModel | ElasticAdapter | Source,
    *,
    quality: Quality | None = None,
    budget_bits: float | None = None,
    target_bytes: int | None = None,
    planned: bool = False,
    measure: bool = False,
    texts: Texts | None = None,
    base_model: str | os.PathLike[str] | None = None,
    initial_adapter: str | os.PathLike[str] | None = None,
    embeddings: bool = False,
    previous: str | os.PathLike[str] | Container | None = None,
    keep: float = KEEP,
    level_texts: int | None = None,
    curvature_texts: int | None = None,
    on_cost: Callable[[Cost], None] | None = None,
    on_pass: OnPass | None = None,
) -> Container:
    """Return an adapter as a container, every prefix of whose chunks is an adapter.

    Args:
        adapter: folder of a run or of an adapter that PEFT saved; a model that carries one, whose
            active adapter is packed; or what `read_adapter` returned.
        quality: quantiser step beside the root mean square of the weights: `fine` is half of it,
            `good` one, `small` two. None, without a budget: the step to which the adapter was
            trained to be rounded, else `good`.
        budget_bits: choose the finest step at which the whole file has at most so many bits; see
            `link_budget_bits`.
        target_bytes: choose ranks and steps with which a file of at most so many bytes loses least;
            see `rankcast.codec.target`. With `measure` also the finest common step, ranks and
            steps by what levels are measured to lose, and rounding by the curvature of the loss,
            each at the gain that suits (`rankcast.packaging.gain`); whichever has the lowest loss.
        planned: of a run, within a budget: choose the rank and the step of each projection
            together, by the gains that the run has learned, instead of one step for all.
        measure: run the model, to take coarser steps where weights matter less and to write into
            the file the loss and accuracy that each prefix reaches on the validation texts.
        texts: where the folder does not name texts and model; implies `measure`.
        base_model: folder of the base model, whose fingerprint is written into the file. PiSSA and
            OLoRA need it.
        initial_adapter: folder of the adapter as it was before training, for initialisations that
            change the base model.
        embeddings: accept embeddings that were trained in full, which are large.
        previous: file of the version that devices have: with its chunks and steps, and with
            components turned towards its own, so that an update from it is small.
        keep: steps from the middle of its old cell at which a weight leaves it; see `successor`.
        level_texts: training texts on which levels are measured; 0 measures none. None for 32, and
            for 0 of a language model, whose passes take long.
        curvature_texts: training texts on which the curvature of the loss is measured; 0 measures
            none. None for 128 of a language model, and for 0 of a classifier.
        on_cost: called with what the file loses, for which the unrounded adapter is measured, too.
        on_pass: called with what is measured (levels, curvature), how many passes or texts are
            done, and of how many.

    Raises:
        CodecError: no adapter there, one that cannot be carried, or a previous file of another.
        ConfigError: options that exclude each other, texts or model that are not known, or an
            adapter that cannot be measured.
        InfeasibleDeadlineError: not even the coarsest step fits the budget.
        InfeasibleSizeError: no file that keeps anything of the adapter has so few bytes.
        ModelError: another base model than the adapter was made for.
    """
    _check_options(quality, budget_bits, target_bytes, planned, previous)
    measure = measure or texts is not None
    for option, n in (("--level-texts", level_texts), ("--curvature-texts", curvature_texts)):
        if n is not None and (target_bytes is None or not measure):
            raise ConfigError(f"{option} goes with --target-bytes and --measure or --texts.")
    folder = Path(adapter) if isinstance(adapter, str | os.PathLike) else None
    base = None if base_model is None else BaseFolder.open(base_model)
    source = _source_of(adapter, peft.PeftSource(base, initial_adapter, embeddings))
    limit = budget_bits if target_bytes is None else 8.0 * target_bytes
    plain = partial(_pack_source, quality=quality, planned=planned, previous=previous, keep=keep)
    if not measure:
        fit = plain if target_bytes is None else _pack_target
        container, cost = fit(source, limit), Cost(None)
    else:
        from rankcast.packaging.measure import pack_measured, setup_for  # noqa: PLC0415 needs torch

        setup = setup_for(source, folder, texts or Texts())
        if target_bytes is None:
            container = pack_measured(setup, (plain,), limit)
        else:  # energy is not the loss: what loses more may be better
            levels = LevelTexts(level_texts, curvature_texts, on_pass)
            container = pack_measured(setup, (_pack_target, plain), limit, levels)
        cost = Cost(None) if on_cost is None else Cost(None, *setup.unrounded())
    if on_cost is not None:
        on_cost(replace(cost, lost_energy=lost_energy(source.tensors, container.tensors())))
    return container


def _check_options(
    quality: Quality | None,
    budget_bits: float | None,
    target_bytes: int | None,
    planned: bool,
    previous: str | os.PathLike[str] | Container | None,
) -> None:
    """Refuse options that exclude each other.

    Raises:
        ConfigError: says which.
    """
    if quality is not None and budget_bits is not None:
        raise ConfigError("Give a quality or a budget in bits, not both.")
    if target_bytes is not None and (quality is not None or budget_bits is not None):
        raise ConfigError("Give one of a quality, a budget in bits and a target in bytes.")
    if budget_bits is not None and math.isnan(budget_bits):
        raise ConfigError("The budget is no number of bits.")
    if planned and target_bytes is not None:
        raise ConfigError(
            "--target-bytes chooses ranks and steps by what they lose of the weights; --planned "
            "goes with --budget-bits or a link."
        )
    if planned and budget_bits is None:
        raise ConfigError("--planned needs a budget or a link.")
    if previous is not None and (quality, budget_bits, target_bytes) != (None, None, None):
        raise ConfigError("A previous file says which steps to take; give no quality or budget.")


def _pack_target(source: Source, budget_bits: float | None) -> Container:
    """Return the file within a number of bits that loses least; see `pack_into`.

    Of an adapter that was trained for given sizes, the largest of them that fits, and what else
    fits of the next.
    """
    budget = budget_bits or 0.0
    return prefixes_within(source, budget) or pack_into(source, budget / 8)


def _pack_source(
    source: Source,
    budget_bits: float | None,
    *,
    quality: Quality | None,
    planned: bool,
    previous: str | os.PathLike[str] | Container | None,
    keep: float,
) -> Container:
    """Return an adapter as a container, without measuring; see `pack`."""
    if budget_bits is not None:
        return (pack_planned if planned else pack_within)(source, budget_bits)
    if previous is not None:
        before = previous if isinstance(previous, Container) else load(previous)
        return pack_after(source, before, keep)
    if quality is None and source.coding is not None:
        return pack_as_trained(source, source.coding)
    exponent = source.exponent
    if quality is not None or exponent is None:
        exponent = exponent_of_quality(source.tensors, RELATIVE_STEPS[quality or "good"])
    return pack_at_exponent(source, exponent)


def _source_of(adapter: Any, beside: peft.PeftSource) -> Source:
    """Return an adapter of any kind that `pack` takes, and its base model where that is at hand.

    Raises:
        CodecError: none that can be carried, or one of more numbers than readers accept.
        ModelError: another base model than it was made for.
    """
    if isinstance(adapter, str | os.PathLike):
        source = read_adapter(adapter, beside)
    else:
        source = adapter if isinstance(adapter, Source) else _from_memory(adapter, beside)
    tensors, base = source.tensors, beside.base
    if tensors.n_params > LARGEST_PARAMS:
        raise CodecError(
            f"The adapter has {tensors.n_params:,} numbers, and readers accept {LARGEST_PARAMS:,}. "
            f"Train fewer modules in full, or a smaller rank; leave out embeddings that were not "
            f"trained (--base-model)."
        )
    if not isinstance(base, BaseFolder):
        return source
    from rankcast.packaging.base_model import identified  # noqa: PLC0415 heavy

    about = source.base, source.task.get("task_type"), tensors.projections, tensors.config
    return replace(source, base=identified(base.path, *about))


def read_adapter(path: str | os.PathLike[str], beside: peft.PeftSource | None = None) -> Source:
    """Return the adapter in a run's folder, in a folder of `save_adapter`, or in one of PEFT's.

    Args:
        path: of the folder.
        beside: what else helps to read one of PEFT's.

    Raises:
        CodecError: no adapter there, or one that cannot be carried.
        ModelError: the base model is needed and lacks a weight.
    """
    folder, description = _folder_of(Path(path))
    if description == native.DESCRIPTION:
        tensors, about = native.read_native(folder)
        base, task = BaseModel(about.base_model, about.base_fingerprint), about.task_type
        source = Source(tensors, base, {"task_type": task} if task else {}, gains=about.gains)
        return source.at(about.coding)
    tensors, config = peft.read_peft(folder, beside)
    base, task = BaseModel(config.get("base_model_name_or_path")), config.get("task_type")
    return Source(tensors, base, {"task_type": task} if task else {})


def given_bits(path: str | os.PathLike[str]) -> tuple[str, int] | None:
    """Return the words for the file of weights that PEFT saved in a folder, and its size.

    Returns:
        Its name with the precision of most of its numbers, and its bits; None for a run, whose
        file holds more than the adapter.
    """
    folder, description = _folder_of(Path(path))
    if description != peft.CONFIG:
        return None
    file = TensorFile.open(folder / peft.WEIGHTS)
    sizes: Counter[str] = Counter()
    for entry in file.entries.values():
        sizes[entry.dtype.lower()] += entry.n_bytes
    words = f"{file.path.name} ({sizes.most_common(1)[0][0]})" if sizes else file.path.name
    return words, 8 * file.path.stat().st_size


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that holds an adapter: of a run, the one inside it.

    Raises:
        CodecError: none does; says where one is.
    """
    return _folder_of(Path(path))[0]


def _folder_of(path: Path) -> tuple[Path, str]:
    """Return the folder that holds an adapter, and the name of its description.

    Raises:
        CodecError: none does; says where one is.
    """
    for candidate in (path, path / "adapter"):
        for description in (native.DESCRIPTION, peft.CONFIG):
            if (candidate / description).is_file():
                return candidate, description
    inside = sorted({p.parent.name for p in path.glob(f"*/{peft.CONFIG}")})
    if path.is_file():
        words = "it is a file; name the folder of the adapter. rankcast info shows a packed file"
    elif not path.exists():
        words = "there is no such folder; an adapter on the hub has to be downloaded first"
    elif (path / peft.WEIGHTS).is_file():
        words = f"{peft.CONFIG}, which PEFT writes beside {peft.WEIGHTS}, is missing: copy it, too"
    elif inside:
        words = f"its subfolders {', '.join(inside)} hold one each: name one of them"
        if len(inside) == 1:
            words = f"its subfolder holds one: name {path / inside[0]}"
    else:
        words = (
            f"neither a run of rankcast (adapter/) nor an adapter that PEFT saved ({peft.CONFIG})"
        )
    raise CodecError(f"There is no adapter in {path}: {words}.")


def load_or_pack(path: Path) -> Container:
    """Return the container in a file, or the adapter of a folder, packed.

    Raises:
        CodecError: neither is there.
    """
    return pack(path) if path.is_dir() else load(path)


def link_budget_bits(
    snr_db: float, bandwidth_hz: float, deadline_s: float, rate_model_name: str = "awgn"
) -> float:
    """Return the bits that a link carries before a deadline.

    Args:
        snr_db: received Es/N0 [dB].
        bandwidth_hz: of the link [Hz].
        deadline_s: time in which the file has to arrive [s].
        rate_model_name: how SNR becomes rate; see `rankcast.link.rate_models`.

    Raises:
        ConfigError: no such rate model, or one with parameters that are not known here.
        LinkError: NaN or infinite SNR; bandwidth or deadline not positive and finite.
    """
    link = LinkState(np.array([snr_db]), np.array([bandwidth_hz]), np.array([deadline_s]))
    model = rate_model(rate_model_name, float(bandwidth_hz))
    return float(bits_before_deadline(rate_bps(model, link)[0], deadline_s))


def _from_memory(adapter: Any, beside: peft.PeftSource) -> Source:
    """Return the adapter that a model carries.

    Raises:
        CodecError: one that cannot be carried.
        ModelError: none, or several that are active.
    """
    from rankcast.adapters.elastic import ElasticAdapter  # noqa: PLC0415 needs torch
    from rankcast.adapters.fingerprint import base_fingerprint  # noqa: PLC0415

    with TemporaryDirectory() as folder:
        if isinstance(adapter, ElasticAdapter):
            from rankcast.adapters.export import save_adapter  # noqa: PLC0415

            return read_adapter(save_adapter(adapter, folder))
        active = getattr(adapter, "active_adapters", ())
        config = getattr(adapter, "active_peft_config", None)
        if config is None or len(active) != 1:
            raise ModelError(
                f"There is no adapter on this {type(adapter).__name__}. Give a folder, a "
                f"peft.PeftModel with one active adapter, or an ElasticAdapter."
            )
        if any(getattr(module, "merged_adapters", ()) for module in adapter.modules()):
            raise ModelError(
                "The adapter is merged into the model's weights, so that they are not the base "
                "model's; call unmerge_adapter() first."
            )
        # PEFT's own "auto" asks the hub whether the vocabulary was changed.
        at_hand = beside.base.path if isinstance(beside.base, BaseFolder) else None
        resized = _is_resized(adapter, at_hand or config.base_model_name_or_path)
        (name,), more = active, beside.embeddings or resized
        adapter.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=more)
        source = read_adapter(folder if name == "default" else Path(folder) / name, beside)
    if beside.base is not None or beside.initial is not None or beyond_lora(source.tensors):
        return source  # the model in memory may have other weights than the base model
    return replace(source, base=replace(source.base, fingerprint=base_fingerprint(adapter)))


def _is_resized(adapter: Any, base: str | os.PathLike[str] | None) -> bool:
    """Whether a model has another vocabulary than its base model, where that is in a folder."""
    folder = Path(base or "")
    known = read_base_config(folder) if (folder / "config.json").is_file() else {}
    size = getattr(getattr(adapter, "config", None), "vocab_size", None)
    return None not in (size, known.get("vocab_size")) and size != known["vocab_size"]
