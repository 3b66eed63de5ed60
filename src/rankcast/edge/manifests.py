"""Keep the manifests of what a device has, to write and prove it without a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rankcast.edge.state import ReleasePrefix
from rankcast.errors import DeliveryError
from rankcast.files import disk_errors, put_file
from rankcast.release.manifest import Manifest


@dataclass(frozen=True)
class KeptManifests:
    """Manifests of releases by version; they were trusted when they came.

    Attributes:
        folder: made when the first one comes.
    """

    folder: Path

    def put(self, manifest: Manifest) -> None:
        """Keep a manifest.

        Raises:
            UnavailableError: the disk does not take it.
        """
        path, data = self._path(manifest.version), manifest.to_bytes()
        with disk_errors(path):
            if not path.is_file() or path.read_bytes() != data:
                put_file(path, data)

    def get(self, version: int) -> Manifest | None:
        """Return the manifest of a version; None if it is not here, or was damaged."""
        try:
            manifest = Manifest.from_bytes(self._path(version).read_bytes())
        except (OSError, DeliveryError):
            return None
        return manifest if manifest.version == version else None

    def n_chunks(self, prefix: ReleasePrefix | None) -> int | None:
        """Return how many chunks a prefix's file has; None if its manifest is not here."""
        if prefix is None or (manifest := self.get(prefix.version)) is None:
            return None
        return len(manifest.files[prefix.file_index].chunks)

    def collect(self, keep: Iterable[int]) -> None:
        """Drop the manifests of all versions but some."""
        kept = {self._path(version) for version in keep}
        for path in sorted(self.folder.glob("*.json")):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"{version}.json"
