"""Adapters on a model in this process, swapped between two requests (needs torch and PEFT).

PEFT's own `hotswap_adapter` gives wrong answers where ranks differ between projections; here the
new adapter is loaded beside the old one, chosen, proved, and only then is the old one let go of.
All of that happens while no request runs, so no request ever meets an adapter that is not proved.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rankcast.adapters.fingerprint import check_base
from rankcast.adapters.install import in_full
from rankcast.codec.lora_files import write_peft
from rankcast.delivery.edge.activation import Candidate
from rankcast.delivery.edge.proving import prove
from rankcast.delivery.edge.read_write_lock import ReadWriteLock
from rankcast.errors import DeliveryError, ModelError, RankcastError


class PeftModelActivator:
    """Puts adapters on a model, safely under concurrent requests.

    Send requests through the activator itself, or hold `reading()` around them.

    Args:
        model: a base model of transformers; it is changed in place.
        tolerance: by how much logits may differ from the fingerprint, as a share of their largest.

    Raises:
        ModelError: the model carries adapters already.
    """

    def __init__(self, model: nn.Module, tolerance: float = 1e-3) -> None:
        if any(".lora_" in name for name, _ in model.named_parameters()):
            raise ModelError(
                "The model carries adapters already. Load the base model alone, and make one "
                "activator for it."
            )
        self._base, self._tolerance = model, tolerance
        self._peft: Any = None
        self._lock = ReadWriteLock()
        self._names: dict[str, str] = {}
        self._active: str | None = None
        self._checked: set[str] = set()

    @property
    def model(self) -> Any:
        """The model with the adapter in force; hold `reading()` while using it."""
        return self._base if self._peft is None else self._peft

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a request with the adapter in force."""
        with self._lock.reading(), torch.no_grad():
            return self.model(*args, **kwargs)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield the model; its adapter stays the same until the block ends."""
        with self._lock.reading():
            yield self.model

    def active(self) -> str | None:
        """Return the label of the release in force."""
        return self._active

    def activate(self, candidate: Candidate) -> None:
        """Load an adapter, choose and prove it; if that fails, the one before is in force.

        Raises:
            DeliveryError: it does not answer as it should, or cannot be loaded.
            ModelError: another base model than it was made for.
            CodecError: no component has arrived.
        """
        self._swap(candidate, with_proof=True)

    def restore(self, candidate: Candidate) -> None:
        """Put an adapter in force that was proved before.

        Raises:
            RankcastError: as `activate`.
        """
        self._swap(candidate, with_proof=False)

    def deactivate(self) -> None:
        """Let the base model answer alone."""
        with self._lock.writing():
            self._disable()

    def discard(self, keep: AbstractSet[str]) -> None:
        """Delete every adapter but those to keep and the one in force."""
        with self._lock.writing():
            for label in [x for x in self._names if x not in keep and x != self._active]:
                self._peft.delete_adapter(self._names.pop(label))

    def _swap(self, candidate: Candidate, *, with_proof: bool) -> None:
        base = candidate.container.header.base
        if base.fingerprint is not None and base.fingerprint not in self._checked:
            check_base(self._base, base.fingerprint, base.name)
            self._checked.add(base.fingerprint)
        label, before = candidate.release.label, self._active
        with self._lock.writing():
            try:
                if label not in self._names:
                    self._load(label, candidate)
                self._choose(label)
                if with_proof:
                    prove(self._peft, self._names[label], candidate, self._tolerance)
            except Exception as error:
                self._go_back(label, before)
                if isinstance(error, RankcastError):
                    raise
                raise DeliveryError(f"{label} cannot be put on the model: {error}.") from error

    def _load(self, label: str, candidate: Candidate) -> None:
        name = f"r{hashlib.sha256(label.encode()).hexdigest()[:12]}"  # PEFT takes no dots
        with tempfile.TemporaryDirectory() as folder:
            task_type = candidate.container.header.task.get("task_type")
            write_peft(in_full(candidate.tensors, self.model), folder, task_type=task_type)
            self._names[label] = name
            if self._peft is None:
                self._check_shapes(candidate)
                from peft import PeftModel  # noqa: PLC0415 takes seconds

                self._peft = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
            else:
                device = str(next(self._base.parameters()).device)
                self._peft.load_adapter(folder, name, torch_device=device)
        self._peft.eval()

    def _check_shapes(self, candidate: Candidate) -> None:
        """Refuse a head of another size before PEFT has changed the model.

        Raises:
            ModelError: one.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self._base.named_parameters()}
        for name, values in candidate.tensors.modules.items():
            if own.get(name) != values.shape:
                raise ModelError(
                    f"{candidate.release.label} brings {name} of shape {values.shape}, this model "
                    f"has {own.get(name)}. Load it with a head for as many labels."
                )

    def _choose(self, label: str) -> None:
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(self._names[label], inference_mode=True)
        self._active = label

    def _go_back(self, label: str, before: str | None) -> None:
        """Put what was in force before back, and drop what failed."""
        if before is None or before not in self._names:
            self._disable()
            return
        self._choose(before)
        if label != before and label in self._names:
            name = self._names.pop(label)
            if name in self._peft.peft_config:
                self._peft.delete_adapter(name)

    def _disable(self) -> None:
        """Let every adapter rest; PEFT cannot give back a model whose head it replaced."""
        self._active = None
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
