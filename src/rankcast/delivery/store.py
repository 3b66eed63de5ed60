"""Where published adapters lie: plain files that any web server can hand out.

| path | what | how long it holds |
|---|---|---|
| `blobs/ab/abcd…` | header or chunk, named by its SHA-256 | for ever |
| `metadata/*.json` | signed metadata of The Update Framework | `timestamp.json`: minutes |
| `targets/adapters/HASH.NAME.json` | manifest of a release, named by its own SHA-256 | for ever |

Private keys are never in the store. Several servers may share one store; only `rankcast publish`
writes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from rankcast.delivery.blobs import Blob, blob_of, checked_name, checked_sha256
from rankcast.errors import DeliveryError
from rankcast.files import put_file

_METADATA = re.compile(r"(?:[1-9][0-9]{0,9}\.)?[a-z][a-z0-9_-]{0,63}\.json")


@dataclass(frozen=True)
class Store:
    """A store's folder.

    Attributes:
        root: the folder.
    """

    root: Path

    @property
    def metadata(self) -> Path:
        """Folder of signed metadata."""
        return self.root / "metadata"

    @property
    def targets(self) -> Path:
        """Folder of manifests."""
        return self.root / "targets"

    def blob_path(self, sha256: str) -> Path:
        """Return where a blob lies or would lie.

        Raises:
            DeliveryError: no SHA-256; nothing else can name a file here.
        """
        digest = checked_sha256(sha256)
        return self.root / "blobs" / digest[:2] / digest

    def metadata_path(self, name: str) -> Path:
        """Return where metadata lie or would lie.

        Args:
            name: such as `timestamp.json` or `3.targets.json`.

        Raises:
            DeliveryError: a name that metadata cannot have.
        """
        if not _METADATA.fullmatch(name):
            raise DeliveryError(f"Metadata are named ROLE.json or NUMBER.ROLE.json, not {name!r}.")
        return self.metadata / name

    def manifest_path(self, name: str, sha256: str) -> Path:
        """Return where the manifest of a release lies or would lie.

        Args:
            name: of the adapter.
            sha256: of the manifest.

        Raises:
            DeliveryError: a name or digest that no manifest can have.
        """
        return self.targets / "adapters" / f"{checked_sha256(sha256)}.{checked_name(name)}.json"

    def put(self, data: bytes) -> Blob:
        """Keep some bytes, once; whole or not at all. A damaged blob is replaced."""
        blob = blob_of(data)
        path = self.blob_path(blob.sha256)
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            put_file(path, data)
        return blob

    def get(self, blob: Blob) -> bytes:
        """Return the bytes of a blob.

        Raises:
            DeliveryError: it is not here, or damaged.
        """
        path = self.blob_path(blob.sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DeliveryError(f"The store lacks {blob.sha256}: {error.strerror}.") from error
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise DeliveryError(f"{path} is damaged: publish its adapter again.")
        return data


def target_path(name: str) -> str:
    """Return what a release's manifest is called among the signed targets.

    Raises:
        DeliveryError: no name of an adapter.
    """
    return f"adapters/{checked_name(name)}.json"
