"""How an adapter becomes the one in force: written beside the old one, switched to in one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rankcast.codec.container import Container
from rankcast.codec.gguf_files import write_gguf
from rankcast.codec.header import Header
from rankcast.codec.lora_files import write_peft
from rankcast.codec.tensors import AdapterTensors
from rankcast.delivery.edge.hook import run_hook
from rankcast.delivery.edge.records import Release
from rankcast.delivery.edge.versions import VersionedFolder
from rankcast.errors import ConfigError, DeliveryError

Format = Literal["peft", "vllm", "gguf", "rcast"]
HOOK_TIMEOUT_S = 60.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """A release whose every byte was verified and decoded.

    Attributes:
        release: what it is.
        container: header and the chunks of the prefix.
        tensors: what they amount to.
    """

    release: Release
    container: Container
    tensors: AdapterTensors


class Activator(Protocol):
    """Puts an adapter in force."""

    def active(self) -> str | None:
        """Return the label of the release in force; None if there is none, or nobody knows."""
        ...

    def activate(self, candidate: Candidate) -> None:
        """Put an adapter in force and prove it; if that fails, the one before stays in force.

        Doing it again with the one in force repeats the proof.

        Raises:
            RankcastError: it could not be put in force, or failed its proof.
        """
        ...

    def restore(self, candidate: Candidate) -> None:
        """Put an adapter in force that was proved before; whether it passes again is not asked.

        Raises:
            RankcastError: it could not be put in force.
        """
        ...

    def deactivate(self) -> None:
        """Put no adapter in force: the base model answers alone."""
        ...

    def discard(self, keep: AbstractSet[str]) -> None:
        """Forget every adapter but those with the labels to keep."""
        ...


@dataclass(frozen=True)
class WriteAdapter:
    """Writes the adapter into a new folder, switches `current` to it, and runs a command.

    Attributes:
        format: `peft`; `vllm`: padded to one rank; `gguf`: for llama.cpp; `rcast`: as it came.
        target: folder of the versions and of `current`.
        hook: program and arguments that make whoever serves read `current` again, and check it; it
            finds the adapter's folder in `RANKCAST_ADAPTER` and the release in `RANKCAST_RELEASE`.
            Any status but 0 means that the adapter before is put back.
        hook_timeout_s: after which it is ended and counts as failed [s].
        base_config: `config.json` of the base model, for `gguf`.
        in_full: adds the base model's tensors to what travels as a difference.
    """

    format: Format
    target: Path
    hook: Sequence[str] | None = None
    hook_timeout_s: float = HOOK_TIMEOUT_S
    base_config: Mapping[str, Any] | None = None
    in_full: Callable[[AdapterTensors, Header], AdapterTensors] | None = None
    versions: VersionedFolder = field(init=False)

    def __post_init__(self) -> None:
        """Find the folder of versions."""
        object.__setattr__(self, "versions", VersionedFolder(self.target.absolute()))

    def active(self) -> str | None:
        """Return the label of the version that `current` leads to."""
        return self.versions.current()

    def activate(self, candidate: Candidate) -> None:
        """Write, switch, run the hook; put the version before back if the hook fails.

        Raises:
            DeliveryError: the hook failed, or the disk is full.
            CodecError: the format cannot carry the adapter.
            ConfigError: the format needs the base model.
        """
        label, before = candidate.release.label, self.versions.current()
        self.versions.write(label, lambda folder: self.fill(folder, candidate))
        self.versions.switch(label)
        try:
            self._run_hook(label)
        except DeliveryError as error:
            if before == label:
                raise
            self.versions.switch(before)
            with contextlib.suppress(DeliveryError):
                self._run_hook(before)
            raise DeliveryError(f"{error} {before or 'No adapter'} is in force again.") from error

    def restore(self, candidate: Candidate) -> None:
        """Write and switch; what the hook says is not asked.

        Raises:
            RankcastError: as `activate`, but for the hook.
        """
        label = candidate.release.label
        self.versions.write(label, lambda folder: self.fill(folder, candidate))
        self.versions.switch(label)
        with contextlib.suppress(DeliveryError):
            self._run_hook(label)

    def deactivate(self) -> None:
        """Remove `current` and run the hook, which finds an empty `RANKCAST_ADAPTER`."""
        self.versions.switch(None)
        with contextlib.suppress(DeliveryError):
            self._run_hook(None)

    def discard(self, keep: AbstractSet[str]) -> None:
        """Remove all other versions."""
        self.versions.discard(keep)

    def fill(self, folder: Path, candidate: Candidate) -> None:
        """Write an adapter in the format into an empty folder.

        Raises:
            CodecError: the format cannot carry it.
            ConfigError: the format needs the base model.
        """
        container, tensors = candidate.container, candidate.tensors
        if self.format == "rcast":
            (folder / "adapter.rcast").write_bytes(container.to_bytes())
            return
        if self.format == "gguf":
            if self.base_config is None:
                raise ConfigError("Writing GGUF needs the base model's config.json: --base-model.")
            write_gguf(tensors, folder / "adapter.gguf", self.base_config)
            return
        if self.in_full is not None and "difference" in tensors.carriage.values():
            tensors = self.in_full(tensors, container.header)
        write_peft(
            tensors,
            folder,
            base_model_name=container.header.base.name,
            task_type=container.header.task.get("task_type"),
            uniform_rank=self.format == "vllm",
        )

    def _run_hook(self, label: str | None) -> None:
        if self.hook:
            told = {
                "RANKCAST_ADAPTER": "" if label is None else str(self.versions.folder(label)),
                "RANKCAST_RELEASE": label or "",
            }
            run_hook(self.hook, told, self.hook_timeout_s)
