"""Code an adapter, from a folder or in memory, as a container: `rankcast.pack`.

A folder needs no torch. An adapter in memory does, and so do measurements of what each prefix is
worth (`rankcast.packaging.measure`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.codec.container import Container, load, pack_at_exponent
from rankcast.codec.formats import native, peft
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import RELATIVE_STEPS, Quality, Source, exponent_of_quality
from rankcast.codec.planner import pack_planned, pack_within
from rankcast.errors import CodecError, ConfigError, ModelError
from rankcast.link.capacity import rate_bps
from rankcast.link.costs import budget_bits as bits_before_deadline
from rankcast.link.rate_models import rate_model
from rankcast.packaging.texts import Texts
from rankcast.records import LinkState

if TYPE_CHECKING:
    from peft import PeftModel

    from rankcast.adapters.elastic import ElasticAdapter


def pack(
    adapter: str | os.PathLike[str] | PeftModel | ElasticAdapter | Source,
    *,
    quality: Quality | None = None,
    budget_bits: float | None = None,
    planned: bool = False,
    measure: bool = False,
    texts: Texts | None = None,
) -> Container:
    """Return an adapter as a container, every prefix of whose chunks is an adapter.

    Args:
        adapter: folder of a run or of a LoRA or AdaLoRA that PEFT saved; a model that carries one,
            whose active adapter is packed; or what `read_adapter` returned.
        quality: quantiser step beside the root mean square of the weights: `fine` is half of it,
            `good` one, `small` two. None, without a budget: the step to which the adapter was
            trained to be rounded, else `good`.
        budget_bits: choose the finest step at which the whole file has at most so many bits; see
            `link_budget_bits`.
        planned: of a run, within a budget: choose the rank and the step of each projection
            together, by the gains that the run has learned, instead of one step for all.
        measure: run the model, to take coarser steps where weights matter less and to write into
            the file the loss and accuracy that each prefix reaches on the validation texts.
        texts: where the folder does not name texts and model; implies `measure`.

    Raises:
        CodecError: no adapter there, or one that cannot be carried.
        ConfigError: options that exclude each other, or texts or model that are not known.
        InfeasibleDeadlineError: not even the coarsest step fits the budget.
        ModelError: another base model than the adapter was made for.
    """
    if quality is not None and budget_bits is not None:
        raise ConfigError("Give a quality or a budget in bits, not both.")
    if planned and budget_bits is None:
        raise ConfigError("--planned needs a budget or a link.")
    folder = Path(adapter) if isinstance(adapter, str | os.PathLike) else None
    if folder is not None:
        source = read_adapter(folder)
    else:
        source = adapter if isinstance(adapter, Source) else _from_memory(adapter)
    if measure or texts is not None:
        from rankcast.packaging.measure import pack_measured, setup_for  # noqa: PLC0415 needs torch

        fit = partial(pack, quality=quality, planned=planned)
        return pack_measured(setup_for(source, folder, texts or Texts()), fit, budget_bits)
    if budget_bits is not None:
        return (pack_planned if planned else pack_within)(source, budget_bits)
    exponent = source.exponent
    if quality is not None or exponent is None:
        exponent = exponent_of_quality(source.tensors, RELATIVE_STEPS[quality or "good"])
    return pack_at_exponent(source, exponent)


def read_adapter(path: str | os.PathLike[str]) -> Source:
    """Return the adapter in a run's folder, in a folder of `save_adapter`, or in one of PEFT's.

    Raises:
        CodecError: no adapter there, or one that cannot be carried.
    """
    folder = Path(path)
    for candidate in (folder, folder / "adapter"):
        if (candidate / native.DESCRIPTION).is_file():
            tensors, about = native.read_native(candidate)
            base, task = BaseModel(about.base_model, about.base_fingerprint), about.task_type
            more = about.offsets, about.exponent, about.gains
            return Source(tensors, base, {"task_type": task} if task else {}, *more)
        if (candidate / peft.CONFIG).is_file():
            tensors, config = peft.read_peft(candidate)
            base, task = BaseModel(config.get("base_model_name_or_path")), config.get("task_type")
            return Source(tensors, base, {"task_type": task} if task else {})
    raise CodecError(
        f"There is no adapter in {folder}: neither a run of rankcast (adapter/) nor an adapter "
        f"that PEFT saved (adapter_config.json)."
    )


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


def _from_memory(adapter: Any) -> Source:
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
        name = getattr(adapter, "active_adapter", None)
        if not isinstance(name, str) or not hasattr(adapter, "peft_config"):
            raise ModelError(
                f"There is no adapter on this {type(adapter).__name__}. Give a folder, a "
                f"peft.PeftModel with one active adapter, or an ElasticAdapter."
            )
        # Without save_embedding_layers PEFT asks the hub whether the vocabulary was changed.
        adapter.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        source = read_adapter(folder if name == "default" else Path(folder) / name)
    return replace(source, base=replace(source.base, fingerprint=base_fingerprint(adapter)))
