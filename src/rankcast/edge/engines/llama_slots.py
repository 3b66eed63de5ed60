"""Two adapter files that a llama.cpp server is started with, and what lies in them.

The server reads them whenever it loads its model, and ends if one is missing or does not fit the
model. So a file is replaced in one step, only by what was compared with the base model's header,
and where there is no adapter yet lies one that changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.codec.formats.gguf_architecture import library
from rankcast.codec.formats.gguf_header import GgufHeader
from rankcast.errors import CodecError, ModelError
from rankcast.files import disk_errors, flush_file, flush_folder, put_file, replace_file

SLOTS = ("a", "b")
_USED = "used"


@dataclass(frozen=True, slots=True)
class Content:
    """What lies in a slot.

    Attributes:
        label: of the prefix.
        sha256: of the file.
        read: whether the server has read it since it was written.
    """

    label: str
    sha256: str
    read: bool


@dataclass(frozen=True)
class Slots:
    """The two files of an adapter, and `NAME-slots.json` that says what lies in them.

    Attributes:
        folder: of the files.
        name: of the adapter.
        base: GGUF of the base model that the server runs.
    """

    folder: Path
    name: str
    base: Path

    def path(self, slot: str) -> Path:
        """Return where a slot's file lies."""
        return self.folder.absolute() / f"{self.name}-{slot}.gguf"

    def content(self, slot: str) -> Content | None:
        """Return what lies in a slot; None for nothing of a release, or a damaged file."""
        try:
            x = self._plain()[slot]
            known = Content(str(x["label"]), str(x["sha256"]), x["read"] is True)
        except (KeyError, TypeError):
            return None
        return known if known.sha256 == _sha256(self.path(slot)) else None

    def prepare(self) -> None:
        """Write adapters that change nothing where there are no files, so that a server can start.

        Raises:
            ModelError: the base model's GGUF cannot be read.
            ConfigError: the extra gguf is missing.
            UnavailableError: the disk does not take them.
        """
        for slot in SLOTS:
            if not self.path(slot).is_file():
                self.clear(slot)

    def clear(self, slot: str) -> None:
        """Put an adapter that changes nothing into a slot; see `prepare` for what it raises."""
        self._put(slot, lambda path: _write_placeholder(path, self._base_header()))
        self._note(slot, None)

    def write(self, slot: str, label: str, write: Callable[[Path], object]) -> None:
        """Put an adapter into a slot.

        Args:
            slot: one that the server does not answer with.
            label: of the prefix.
            write: writes the GGUF.

        Raises:
            CodecError: the adapter does not fit the base model; nothing was changed.
            UnavailableError: the disk does not take it.
        """

        def checked(path: Path) -> None:
            write(path)
            _check_fits(GgufHeader.open(path), self._base_header(), label)

        self._put(slot, checked)
        self._note(slot, Content(label, _sha256(self.path(slot)) or "", read=False))

    def mark_read(self, slot: str) -> None:
        """Write down that the server has read what lies in a slot."""
        content = self.content(slot)
        if content is not None:
            self._note(slot, Content(content.label, content.sha256, read=True))

    def used(self) -> str | None:
        """Return the slot that the server was told last to answer with."""
        return next((slot for slot in SLOTS if self._plain().get(_USED) == slot), None)

    def note_used(self, slot: str | None) -> None:
        """Write down which slot the server was told to answer with."""
        if self.used() != slot:
            self._save(self._plain() | {_USED: slot})

    def _base_header(self) -> GgufHeader:
        return GgufHeader.open(self.base)

    def _put(self, slot: str, write: Callable[[Path], object]) -> None:
        path = self.path(slot)

        def whole(partial: Path) -> None:
            write(partial)
            flush_file(partial)

        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, whole)
            flush_folder(path.parent)

    @property
    def _notes(self) -> Path:
        return self.folder.absolute() / f"{self.name}-slots.json"

    def _plain(self) -> dict[str, Any]:
        """Return what is written down; nothing where that was damaged: a slot is written anew."""
        try:
            plain = json.loads(self._notes.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return plain if isinstance(plain, dict) else {}

    def _note(self, slot: str, content: Content | None) -> None:
        plain = self._plain()
        plain[slot] = None if content is None else asdict(content)
        self._save(plain)

    def _save(self, plain: dict[str, Any]) -> None:
        with disk_errors(self._notes):
            put_file(self._notes, (json.dumps(plain, indent=2) + "\n").encode())


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _check_fits(adapter: GgufHeader, base: GgufHeader, label: str) -> None:
    """Refuse what would end the server as it loads.

    Raises:
        CodecError: another architecture, or a factor without a weight that it fits.
    """
    names = [header.text("general.architecture") for header in (adapter, base)]
    if names[0] != names[1]:
        raise CodecError(
            f"{label} was written for {names[0]}, and {base.path} is {names[1]}. Ask for an "
            f"adapter of this model."
        )
    for name, factor in adapter.tensors.items():
        stem, _, part = name.rpartition(".lora_")
        weight = base.tensors.get(stem)
        if weight is None or len(weight.shape) != 2 or part not in ("a", "b"):
            raise CodecError(f"{label} changes {stem or name}, which {base.path} does not have.")
        d_out, d_in = weight.shape
        width, wanted = (factor.shape[-1], d_in) if part == "a" else (factor.shape[0], d_out)
        if width != wanted:
            raise CodecError(
                f"{label} has {width} numbers for {stem}, and the weight in {base.path} takes "
                f"{wanted}. Ask for an adapter of this model."
            )


def _write_placeholder(path: Path, base: GgufHeader) -> None:
    """Write an adapter of rank 1 and zeros on the first weight of a layer.

    Raises:
        ModelError: the base model has no layer.
    """
    gguf: Any = library()
    name = next(
        (n for n, t in base.tensors.items() if n.startswith("blk.0.") and len(t.shape) == 2), None
    )
    if name is None:
        raise ModelError(f"{base.path} has no layer that an adapter could change.")
    d_out, d_in = base.tensors[name].shape
    writer = gguf.GGUFWriter(path, base.text("general.architecture"))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
    writer.add_tensor(f"{name}.lora_a", np.zeros((1, d_in), np.float32))
    writer.add_tensor(f"{name}.lora_b", np.zeros((d_out, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
