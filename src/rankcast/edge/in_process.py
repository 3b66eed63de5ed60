"""Swap adapters on a model in this process between two requests (needs torch and PEFT).

PEFT's own `hotswap_adapter` gives wrong answers where ranks differ between projections; here the
new adapter is loaded beside the old one, selected, proved, and only then is the old one deleted.
All of that happens while no request runs, so no request ever meets an adapter that is not proved.

The proof compares weights and logits. What was published carries the logits of the whole adapter;
those of a shorter prefix are computed here, from the decoded tensors and the base model without
PEFT's layers. Adapters that are more than a LoRA (experts, biases, other methods) cannot be
computed without PEFT: of those every tensor is compared with the one that arrived.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankcast.adapters.arrays import in_full
from rankcast.adapters.fingerprint import answers_alike, check_base, logits_fingerprint
from rankcast.codec.formats.peft import WEIGHTS, write_peft
from rankcast.codec.formats.tensor_file import TensorFile
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.edge.activate import Candidate
from rankcast.edge.sync import EdgeClient
from rankcast.errors import DeliveryError, ModelError, RankcastError

_MOST_IDS = 4096
_TOLERANCE = 1e-2
"""Of a weight update that was read back from the model, as a share of its norm; half precision."""


class PeftModelActivator:
    """Makes adapters active on a model, safely under concurrent requests.

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
        """The model with the active adapter; hold `reading()` while using it."""
        return self._base if self._peft is None else self._peft

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer a request with the active adapter."""
        with self._lock.reading(), torch.no_grad():
            return self.model(*args, **kwargs)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield the model; its adapter stays the same until the block ends."""
        with self._lock.reading():
            yield self.model

    def active(self) -> str | None:
        """Return the label of the active prefix."""
        return self._active

    def activate(self, candidate: Candidate) -> None:
        """Load an adapter, select and prove it; if that fails, the one before stays active.

        Raises:
            DeliveryError: it does not answer as it should, or cannot be loaded.
            ModelError: another base model than it was made for.
            CodecError: no component has arrived.
        """
        self._swap(candidate, with_proof=True)

    def restore(self, candidate: Candidate) -> None:
        """Make an adapter active that was proved before."""
        self._swap(candidate, with_proof=False)

    def deactivate(self) -> None:
        """Let the base model answer alone."""
        with self._lock.writing():
            self._disable()

    def discard(self, keep: AbstractSet[str]) -> None:
        """Delete every adapter but those to keep and the active one."""
        with self._lock.writing():
            for label in [x for x in self._names if x not in keep and x != self._active]:
                self._peft.delete_adapter(self._names.pop(label))

    def _swap(self, candidate: Candidate, *, with_proof: bool) -> None:
        base = candidate.container.header.base
        if base.fingerprint is not None and base.fingerprint not in self._checked:
            check_base(self._base, base.fingerprint, base.name)
            self._checked.add(base.fingerprint)
        label, before = candidate.prefix.label, self._active
        with self._lock.writing():
            try:
                if label not in self._names:
                    self._load(label, candidate)
                self._select(label)
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
            _check_method(folder, label)
            self._names[label] = name
            if self._peft is None:
                self._check_shapes(candidate)
                from peft import PeftModel  # noqa: PLC0415 takes seconds

                self._peft = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
            else:
                device = str(next(self._base.parameters()).device)
                self._peft.load_adapter(folder, name, torch_device=device)
            if not _is_plain(candidate.tensors):
                _compare_tensors(self._peft, name, folder, label)
        self._peft.eval()

    def _check_shapes(self, candidate: Candidate) -> None:
        """Refuse a head of another size before PEFT has changed the model.

        Raises:
            ModelError: one.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self._base.named_parameters()}
        carriage = candidate.tensors.carriage
        for name, values in candidate.tensors.modules.items():
            if carriage[name] != "own" and own.get(name) != values.shape:
                raise ModelError(
                    f"{candidate.prefix.label} brings {name} of shape {values.shape}, this model "
                    f"has {own.get(name)}. Load it with a head for as many labels."
                )

    def _select(self, label: str) -> None:
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(self._names[label], inference_mode=True)
        self._active = label

    def _go_back(self, label: str, before: str | None) -> None:
        """Put the adapter before back, and drop what failed."""
        if before is None or before not in self._names:
            self._disable()
            return
        self._select(before)
        if label != before and label in self._names:
            name = self._names.pop(label)
            if name in self._peft.peft_config:
                self._peft.delete_adapter(name)

    def _disable(self) -> None:
        """Let every adapter rest; PEFT cannot give back a model whose head it replaced."""
        self._active = None
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()


@contextmanager
def hot_adapter(
    model: nn.Module, client: EdgeClient, every_s: float | None = 60.0
) -> Iterator[PeftModelActivator]:
    """Serve a model with an adapter that is kept up to date while requests run.

    The adapter that was active on this device is put on the model first, which needs no network;
    then a thread syncs at once and every `every_s`. Errors of syncs are in the client's state.

    Args:
        model: a base model of transformers.
        client: its own activator is not used.
        every_s: between two syncs [s]; None for one sync, before the block begins.

    Yields:
        What to call instead of the model.

    Raises:
        RankcastError: what is on this device cannot be put on the model; with `every_s=None` also
            whatever the sync raises.
    """
    activator = PeftModelActivator(model)
    bound = client.with_activator(activator)
    bound.resume()
    if every_s is None:
        bound.sync()
        yield activator
        return
    stop = threading.Event()
    thread = threading.Thread(target=_keep_syncing, args=(bound, every_s, stop), daemon=True)
    thread.start()
    try:
        yield activator
    finally:
        stop.set()
        thread.join()


def _keep_syncing(client: EdgeClient, every_s: float, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(RankcastError):  # it is in the state; the next sync tries again
            client.sync()
        stop.wait(every_s)


class ReadWriteLock:
    """Shared by readers, held alone by a writer, whom readers that come later wait for.

    Requests read and run side by side; a swap of adapters writes and runs alone. A thread that
    reads must not read again inside, nor write: it could wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_readers = 0
        self._n_waiting = 0
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold it beside other readers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._n_waiting)
            self._n_readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold it alone."""
        with self._changed:
            self._n_waiting += 1
            try:
                self._changed.wait_for(lambda: not self._writing and not self._n_readers)
            finally:
                self._n_waiting -= 1
                self._changed.notify_all()
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


def prove(model: Any, name: str, candidate: Candidate, tolerance: float) -> None:
    """Check that a model answers as base model and adapter together should.

    Args:
        model: of PEFT.
        name: of the adapter in it; it is the active one.
        candidate: what it should be.
        tolerance: of logits, as a share of their largest.

    Raises:
        DeliveryError: the model does not answer as it should.
    """
    label, published = candidate.prefix.label, candidate.container.header.fingerprint
    is_plain = _is_plain(candidate.tensors)
    if is_plain:
        _compare_weights(model, name, candidate)
    if candidate.container.is_whole and published is not None:
        _check_ids(model, published)
        if not answers_alike(model, dict(published), tolerance):
            raise DeliveryError(
                f"With {label} the model does not answer as it did where the adapter was "
                f"published. Check that it has the same version, precision and head."
            )
    logits = np.array(logits_fingerprint(model)["logits"])  # before anything switches adapters
    if not np.isfinite(logits).all():
        raise DeliveryError(f"With {label} the model answers NaN or infinity.")
    if not is_plain:
        return
    expected = np.array(_expected(model, name, candidate.tensors)["logits"])
    if not np.abs(logits - expected).max() <= tolerance * max(np.abs(expected).max(), 1.0):
        raise DeliveryError(
            f"With {label} the model does not answer as base model and adapter together "
            f"should: PEFT or the model computes something else."
        )


def _is_plain(tensors: AdapterTensors) -> bool:
    """Whether an adapter adds ΔW to linear layers and replaces the model's own tensors, no more."""
    return not tensors.config and "own" not in tensors.carriage.values()


def _check_method(folder: str, label: str) -> None:
    """Refuse what changes the input of a model, which cannot be switched off between requests.

    Raises:
        ModelError: a prompt, or a method that this PEFT does not know.
    """
    from peft import PeftConfig  # noqa: PLC0415 takes seconds

    try:
        config: Any = PeftConfig.from_pretrained(folder)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{label} is of a method that this PEFT lacks ({error}).") from error
    if config.is_prompt_learning:
        raise ModelError(
            f"{label} is of the method {config.peft_type.value}, which adds a prompt and cannot be "
            f"swapped in a running model. Sync it with --format peft and load it at start."
        )


def _compare_tensors(model: Any, name: str, folder: str, label: str) -> None:
    """Check that PEFT took every tensor of a folder.

    Raises:
        DeliveryError: it did not.
    """
    from peft import get_peft_model_state_dict  # noqa: PLC0415 takes seconds

    held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    file = TensorFile.open(Path(folder) / WEIGHTS)
    for key in file.entries:
        expected, own = file.array(key), held.get(key)
        found = None if own is None else own.detach().float().cpu().numpy()
        if found is None or found.shape != expected.shape:
            raise DeliveryError(f"The model has no place for {key} of {label}.")
        if not np.linalg.norm(found - expected) <= _TOLERANCE * np.linalg.norm(expected):
            raise DeliveryError(f"{key} of the model is not what came with {label}.")


def _expected(model: Any, name: str, tensors: AdapterTensors) -> dict[str, Any]:
    """Return the fingerprint of base model and adapter together, without PEFT."""
    base = model.get_base_model()
    with ExitStack() as stack:
        stack.enter_context(_adapters_off(model, name))
        for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
            if factors.rank:
                layer = base.get_submodule(projection.name).base_layer
                stack.callback(layer.register_forward_hook(_adds_update(factors)).remove)
        stack.enter_context(_own_tensors_replaced(base, in_full(tensors, model).modules))
        return logits_fingerprint(base)


def _adds_update(factors: Factors) -> Any:
    """Return a hook of a linear layer that adds ΔW x to what it gives."""

    def add(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        del layer
        left = torch.as_tensor(factors.left, dtype=out.dtype, device=out.device)
        right = torch.as_tensor(factors.right, dtype=out.dtype, device=out.device)
        return out + given[0].to(out.dtype) @ right.T @ left.T

    return add


@contextmanager
def _adapters_off(model: Any, name: str) -> Iterator[None]:
    """Let the base model answer alone until the block ends."""
    model.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        model.base_model.enable_adapter_layers()
        model.set_adapter(name, inference_mode=True)


@contextmanager
def _own_tensors_replaced(base: nn.Module, modules: Mapping[str, Any]) -> Iterator[None]:
    """Let a model's own tensors be those that travelled with the adapter, until the block ends."""
    own = {name.replace(".original_module.", "."): p for name, p in base.named_parameters()}
    before = {name: own[name].data for name in modules}
    try:
        for name, values in modules.items():
            own[name].data = torch.as_tensor(values).to(before[name])
        yield
    finally:
        for name, data in before.items():
            own[name].data = data


def _compare_weights(model: Any, name: str, candidate: Candidate) -> None:
    """Check that every projection of the model adds the weights that were decoded.

    Raises:
        DeliveryError: one does not.
    """
    base, tensors = model.get_base_model(), candidate.tensors
    for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
        if not factors.rank:
            continue
        layer = base.get_submodule(projection.name)
        left = layer.lora_B[name].weight.detach().float().cpu().numpy()
        right = layer.lora_A[name].weight.detach().float().cpu().numpy()
        expected = factors.delta_weight()
        error = np.linalg.norm(layer.scaling[name] * (left @ right) - expected)
        if not error <= _TOLERANCE * np.linalg.norm(expected):
            raise DeliveryError(
                f"{projection.name} did not take the weights of {candidate.prefix.label}."
            )


def _check_ids(model: Any, fingerprint: Mapping[str, Any]) -> None:
    """Refuse token ids that this model does not know, before a device crashes on them.

    Raises:
        DeliveryError: no list of tokens of the vocabulary.
    """
    size = int(model.config.get_text_config().vocab_size)
    ids = fingerprint.get("input_ids")
    if (
        not isinstance(ids, list)
        or not 0 < len(ids) <= _MOST_IDS
        or not all(isinstance(i, int) and 0 <= i < size for i in ids)
        or not isinstance(fingerprint.get("logits"), list)
    ):
        raise DeliveryError(
            "The proof that came with the adapter is none that this model can repeat: its "
            "tokens are not in the vocabulary. Ask whoever published."
        )
