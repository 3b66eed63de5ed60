"""Small releases, a publisher and a device for the tests of delivery."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.ngclient import FetcherInterface

from codec_data import packed, random_adapter
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel
from rankcast.delivery.downloads import FolderFetcher
from rankcast.delivery.keyring import KeyFolder
from rankcast.delivery.manifest import Manifest
from rankcast.delivery.publishing import publish
from rankcast.delivery.signing import init_keys
from rankcast.delivery.store import Store
from rankcast.delivery.trust import TufSource, trust_root

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BASE = "0" * 64


def container(seed: int = 0, base: str = BASE, task: str = "SEQ_CLS") -> Container:
    """Return a file of about a kilobyte."""
    found = packed(random_adapter(seed, ((6, 4),), (2,)))
    header = replace(found.header, base=BaseModel("tiny", base), task={"task_type": task})
    return replace(found, header=header)


class Counting(FetcherInterface):
    """Gets files from a folder; notes what was asked for and how many bytes came."""

    def __init__(self, root: Path) -> None:
        self.inner = FolderFetcher(root)
        self.files: list[str] = []
        self.n_bytes = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.files.append(url.rpartition("/")[2])
        for chunk in self.inner.fetch(url):
            self.n_bytes += len(chunk)
            yield chunk


@dataclass(frozen=True)
class Publisher:
    """A store and its keys."""

    store: Store
    keys: KeyFolder

    def publish(self, seed: int = 0, name: str = "sst2", now: datetime = NOW) -> Manifest:
        return publish([container(seed)], name, self.store, self.keys, now)

    @property
    def root_file(self) -> bytes:
        return (self.store.metadata / "root.json").read_bytes()


def publisher(folder: Path, n_root: int = 1, threshold: int = 1) -> Publisher:
    """Return a store with keys and no release."""
    made = Publisher(Store(folder / "store"), KeyFolder(folder / "keys"))
    init_keys(made.keys, made.store, NOW, n_root=n_root, threshold=threshold)
    return made


def device(
    made: Publisher,
    state: Path,
    now: datetime = NOW,
    fetcher: FetcherInterface | None = None,
    root: bytes | None = None,
) -> TufSource:
    """Return a device that was installed with the publisher's present root, or another one."""
    if not (state / "trusted-root.json").exists():
        trust_root(state, root or made.root_file)
    store = made.store.root
    return TufSource(
        made.store.metadata.resolve().as_uri(),
        made.store.targets.resolve().as_uri(),
        state,
        fetcher or FolderFetcher(store),
        lambda: now,
    )


class PowerCutError(BaseException):
    """Nothing can be done about it."""


class DyingDisk:
    """Ends at the k-th operation on files: what it was doing stays half done, nothing follows."""

    def __init__(self, patch: pytest.MonkeyPatch, dies_at: int) -> None:
        self.count, self.dies_at = 0, dies_at
        for name in ("open", "fsync", "replace", "unlink", "mkdir", "truncate", "write"):
            patch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.dies_at and name == "fsync":
                with contextlib.suppress(OSError):  # a folder
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
            if self.count >= self.dies_at:
                raise PowerCutError
            return None if name == "fsync" else real(*args, **options)

        return called


def crashed(act: Callable[[], object], dies_at: int) -> bool:
    """Do something on a disk that dies at its k-th operation; return whether it died."""
    with pytest.MonkeyPatch.context() as patch:
        DyingDisk(patch, dies_at)
        try:
            act()
        except PowerCutError:
            return True
    return False
