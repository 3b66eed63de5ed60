"""Small releases, a publisher and a device for the tests of delivery."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from helpers.codec import packed, random_adapter
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel
from rankcast.release.ceremony import init_keys
from rankcast.release.http import CHUNK
from rankcast.release.keys import KeyFolder
from rankcast.release.manifest import Manifest
from rankcast.release.publish import publish
from rankcast.release.store import Store
from rankcast.release.verify import TufSource, trust_root

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BASE = "0" * 64


def container(seed: int = 0, base: str = BASE, task: str = "SEQ_CLS") -> Container:
    """Return a file of about a kilobyte."""
    file = packed(random_adapter(seed, ((6, 4),), (2,)))
    header = replace(file.header, base=BaseModel("tiny", base), task={"task_type": task})
    return replace(file, header=header)


class FolderFetcher(FetcherInterface):
    """Gets files from a folder."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url2pathname(urlsplit(url).path))
        if not path.is_file():
            raise DownloadHTTPError(f"{url}: no such file", HTTPStatus.NOT_FOUND)
        data = path.read_bytes()
        yield from (data[i : i + CHUNK] for i in range(0, len(data), CHUNK))


class Counting(FetcherInterface):
    """Gets files from a folder; notes what was asked for and how many bytes came."""

    def __init__(self) -> None:
        self.inner = FolderFetcher()
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


def new_publisher(folder: Path, n_root: int = 1, threshold: int = 1) -> Publisher:
    """Return a store with keys and no release."""
    publisher = Publisher(Store(folder / "store"), KeyFolder(folder / "keys"))
    init_keys(publisher.keys, publisher.store, NOW, n_root=n_root, threshold=threshold)
    return publisher


def device(
    publisher: Publisher,
    state: Path,
    now: datetime = NOW,
    fetcher: FetcherInterface | None = None,
    root: bytes | None = None,
) -> TufSource:
    """Return a device that was installed with the publisher's present root, or another one."""
    if not (state / "trusted-root.json").exists():
        trust_root(state, root or publisher.root_file)
    return TufSource(
        publisher.store.metadata.resolve().as_uri(),
        publisher.store.targets.resolve().as_uri(),
        state,
        fetcher or FolderFetcher(),
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
