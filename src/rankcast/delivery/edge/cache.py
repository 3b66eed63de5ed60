"""Blobs on a device.

| path | what |
|---|---|
| `blobs/SHA256` | a blob, complete and verified; never fetched again |
| `blobs/SHA256.part` | what has arrived of one; resumed where it ends |

A blob gets its name in one step, after its SHA-256 was found right and the disk has its bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from rankcast.delivery.blobs import Blob, checked_sha256
from rankcast.delivery.edge.durable import disk_error, flush_file
from rankcast.errors import DeliveryError, TrustError, UnavailableError
from rankcast.files import flush_folder

RESERVE_BYTES = 2**20
"""Bytes of the disk that are left free, for state files and whatever else the device does."""
_BLOCK = 2**20
_PART = ".part"


def free_bytes(folder: Path) -> int:
    """Return how many bytes the disk of a folder can still take."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class BlobCache:
    """The blobs of one device.

    Attributes:
        root: folder; made when the first blob comes.
        free: says how many bytes the disk of a folder can still take.
    """

    root: Path
    free: Callable[[Path], int] = free_bytes

    def path(self, sha256: str) -> Path:
        """Return where a complete blob lies.

        Raises:
            DeliveryError: no SHA-256; nothing else can name a file here.
        """
        return self.root / checked_sha256(sha256)

    def partial(self, blob: Blob) -> Path:
        """Return where the beginning of a blob lies."""
        path = self.path(blob.sha256)
        return path.with_name(path.name + _PART)

    def has(self, blob: Blob) -> bool:
        """Whether a blob is complete here."""
        path = self.path(blob.sha256)
        return path.is_file() and path.stat().st_size == blob.n_bytes

    def held(self, blobs: Iterable[Blob]) -> frozenset[str]:
        """Return the SHA-256 of those that are complete here."""
        return frozenset(blob.sha256 for blob in blobs if self.has(blob))

    def n_arrived(self, blob: Blob) -> int:
        """Return how many bytes of a blob are here; a beginning that is too long is dropped."""
        if self.has(blob):
            return blob.n_bytes
        partial = self.partial(blob)
        size = partial.stat().st_size if partial.is_file() else 0
        if size > blob.n_bytes:
            partial.unlink()
            return 0
        return size

    def check_space(self, blobs: Iterable[Blob]) -> None:
        """Refuse to begin what the disk cannot take.

        Raises:
            UnavailableError: too little room; says how much is missing.
        """
        needed = sum(blob.n_bytes - self.n_arrived(blob) for blob in blobs)
        if not needed:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        short = needed + RESERVE_BYTES - self.free(self.root)
        if short > 0:
            raise UnavailableError(
                f"The disk of {self.root} is too full: {needed:,} bytes are to be fetched, and "
                f"{short:,} more would have to be free. Nothing was changed; free some space and "
                f"sync again."
            )

    def complete(self, blob: Blob) -> None:
        """Give a blob that has arrived in full its name, if its bytes are the right ones.

        Raises:
            TrustError: they are not; what had arrived is discarded.
            UnavailableError: the disk does not take it.
        """
        partial = self.partial(blob)
        found = _digest(partial)
        if found != blob.sha256 or partial.stat().st_size != blob.n_bytes:
            partial.unlink()
            raise TrustError(
                f"The server sent other bytes than the release names for {blob.sha256[:12]}… "
                f"(their SHA-256 is {found[:12]}…). They were discarded; fetch from a server that "
                f"you trust, or ask whoever published."
            )
        try:
            flush_file(partial)
            partial.replace(self.path(blob.sha256))
            flush_folder(self.root)
        except OSError as error:
            raise disk_error(partial, error) from error

    def read(self, sha256: str) -> bytes:
        """Return the bytes of a complete blob.

        Raises:
            DeliveryError: it is not here, or damaged; then it is dropped, to be fetched again.
        """
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DeliveryError(
                f"{path} cannot be read ({error.strerror}); sync again to fetch it."
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            raise DeliveryError(f"{path} was damaged on this disk and dropped; sync again.")
        return data

    def collect(self, keep: AbstractSet[str]) -> int:
        """Drop every blob, complete or not, that is not to be kept; return the bytes freed."""
        freed = 0
        if not self.root.is_dir():
            return freed
        for path in sorted(self.root.iterdir()):
            if path.is_file() and path.name.removesuffix(_PART) not in keep:
                freed += path.stat().st_size
                path.unlink()
        return freed


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
