"""The base model of a device: its fingerprint, taken once while its files stay the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rankcast.codec.formats.gguf import read_base_config
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.formats.gguf_base import GgufBase
from rankcast.codec.header import is_fingerprint
from rankcast.errors import ModelError
from rankcast.files import put_file
from rankcast.release.manifest import Manifest
from rankcast.release.runs_on import copy_with

CACHE = "base-model.json"
_COUNTED = (".safetensors", ".json", ".gguf")


def fingerprints_of(
    base: Path, folder: Path, of_folder: Callable[[Path], Sequence[str]]
) -> tuple[str, ...]:
    """Return the fingerprints that a device's base model may have.

    They are kept beside the device's state with size, time, and inode of the model's files, and
    taken anew when one of these changes.

    Args:
        base: a GGUF, or the first of several; or a Hugging Face folder.
        folder: of the device.
        of_folder: takes those of a Hugging Face folder.

    Raises:
        ModelError: no whole model there.
    """
    files = list(_files(base))
    known = _known(folder / CACHE, files)
    if known:
        return known
    found = tuple(of_folder(base)) if base.is_dir() else (GgufBase.open(base).fingerprint(),)
    data = json.dumps({"files": files, "fingerprints": found}, indent=2).encode() + b"\n"
    with contextlib.suppress(OSError):  # a full disk: taken again the next time
        put_file(folder / CACHE, data)
    return found


def architecture_on(
    base: Path, fingerprints: Iterable[str], manifest: Manifest | None
) -> GgufArchitecture:
    """Return the architecture of a device's base model: as its release says, or by its own files.

    Args:
        base: see `fingerprints_of`.
        fingerprints: of it.
        manifest: of the release; None where it was lost.

    Raises:
        ConfigError: an architecture of which the order of rows is not known.
        ModelError: no model there.
    """
    copy = None if manifest is None else copy_with(manifest.runs_on, fingerprints)
    if copy is not None and copy.architecture is not None:
        return GgufArchitecture.from_plain(copy.architecture)
    if base.is_dir():
        return GgufArchitecture.of_config(read_base_config(base))
    return GgufArchitecture.of_gguf(base)


def _files(base: Path) -> Iterable[list[str | int]]:
    """Yield name, size, time and inode of the files that say which model it is.

    Raises:
        ModelError: nothing there.
    """
    try:
        if base.is_dir():
            paths = [path for path in sorted(base.iterdir()) if path.suffix in _COUNTED]
        else:
            stem, first, _ = base.name.partition("-00001-of-")
            beside = base.parent.iterdir() if first else ()
            parts = [path for path in sorted(beside) if path.name.startswith(f"{stem}-")]
            paths = [path for path in parts if path.suffix == base.suffix] or [base]
        for path in paths:
            told = path.stat()
            yield [str(path.absolute()), told.st_size, told.st_mtime_ns, told.st_ino]
    except OSError as error:
        raise ModelError(
            f"{base} is no base model that can be read: {error.strerror}, and the hub is not "
            f"asked. Name a GGUF file, or a folder with safetensors, with --base-model; or the "
            f"fingerprint alone, with --base-fingerprint."
        ) from error


def _known(path: Path, files: list[list[str | int]]) -> tuple[str, ...]:
    """Return the fingerprints that were taken of the same files; none if there are none."""
    try:
        plain = json.loads(path.read_text("utf-8"))
        found = tuple(plain["fingerprints"]) if plain["files"] == files else ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return found if all(map(is_fingerprint, found)) else ()
