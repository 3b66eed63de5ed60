"""Versions of an adapter side by side on a disk, and a link to the one in force."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from rankcast.delivery.edge.durable import disk_error, flush_file
from rankcast.files import flush_folder

_SUMS = "rankcast_release.json"


@dataclass(frozen=True)
class VersionedFolder:
    """`versions/LABEL`, each written once and whole, and `current`, a link to the one in force.

    Attributes:
        root: the folder.
    """

    root: Path

    @property
    def link(self) -> Path:
        """The symbolic link to what is in force."""
        return self.root / "current"

    def folder(self, label: str) -> Path:
        """Return where a version lies."""
        return self.root / "versions" / label

    def current(self) -> str | None:
        """Return the label of the version that `current` leads to; None if it leads nowhere."""
        try:
            label = self.link.readlink().name
        except OSError:
            return None
        return label if self.folder(label).is_dir() else None

    def write(self, label: str, fill: Callable[[Path], object]) -> Path:
        """Let `fill` write a version, unless it lies here unchanged, and return its folder.

        Raises:
            UnavailableError: the disk is full.
        """
        folder = self.folder(label)
        if _unchanged(folder):
            return folder
        partial = folder.with_name(f".{label}.tmp")
        try:
            for old in (partial, folder):
                shutil.rmtree(old, ignore_errors=True)
            partial.mkdir(parents=True)
            fill(partial)
            (partial / _SUMS).write_text(json.dumps(_sums(partial), indent=2) + "\n", "utf-8")
            for path in partial.iterdir():
                flush_file(path)
            flush_folder(partial)
            partial.rename(folder)
            flush_folder(folder.parent)
        except OSError as error:
            raise disk_error(folder, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def switch(self, label: str | None) -> None:
        """Let `current` lead to another version in one step; None removes it.

        Raises:
            UnavailableError: the disk does not take it.
        """
        partial = self.root / ".current.tmp"
        try:
            if label is None:
                self.link.unlink(missing_ok=True)
            else:
                partial.unlink(missing_ok=True)
                partial.symlink_to(Path("versions") / label, target_is_directory=True)
                partial.replace(self.link)
            flush_folder(self.root)
        except OSError as error:
            raise disk_error(self.link, error) from error

    def discard(self, keep: AbstractSet[str]) -> None:
        """Remove every version but those to keep and the one in force."""
        versions, current = self.root / "versions", self.current()
        for path in sorted(versions.iterdir()) if versions.is_dir() else ():
            if path.name not in keep and path.name != current:
                shutil.rmtree(path, ignore_errors=True)


def _sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != _SUMS
    }


def _unchanged(folder: Path) -> bool:
    """Whether the files of a version are those that were written."""
    try:
        return json.loads((folder / _SUMS).read_text("utf-8")) == _sums(folder)
    except (OSError, ValueError):
        return False
