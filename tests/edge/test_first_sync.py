"""Two first syncs of a new device at once, as when a timer and a person start one each."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Call
from helpers.edge import settings
from helpers.releases import BASE, Publisher, new_publisher
from helpers.sites import Answer, Asked, Site, site
from helpers.waiting import DEADLOCK_S, at_once
from rankcast.edge.sync import EdgeClient
from rankcast.errors import TrustError
from rankcast.release.verify import signed_source, trust_root


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = new_publisher(tmp_path)
    publisher.publish(1, now=datetime.now(UTC))
    return publisher


@pytest.fixture
def server(publisher: Publisher) -> Iterator[Site]:
    with site(publisher.store.root) as running:
        yield running


def test_the_second_says_that_the_first_is_at_work_and_the_first_succeeds(
    server: Site, tmp_path: Path, call: Call
) -> None:
    came, may_go = threading.Event(), threading.Event()

    def habit(asked: Asked) -> Answer | None:
        del asked
        came.set()
        assert may_go.wait(DEADLOCK_S)
        return None

    server.habit = habit
    root, folder = server.folder / "metadata" / "root.json", tmp_path / "device"
    outcomes: list[str] = []

    def first() -> None:
        source = signed_source(server.url, folder, root=root)
        client = EdgeClient(server.url, "sst2", BASE, folder, source, settings=settings())
        outcomes.append(client.sync().outcome)

    def second() -> None:
        assert came.wait(DEADLOCK_S)
        args = ["--server", server.url, "--adapter", "sst2", "--folder", str(folder),
                "--base-fingerprint", BASE, "--root", str(root)]  # fmt: skip
        try:
            said = call.refused("edge", "sync", *args)
        finally:
            may_go.set()
        assert "Someone else is syncing" in said
        assert "Traceback" not in said

    at_once(first, second)
    assert outcomes == ["activated"]
    assert list(folder.rglob("*.tmp")) == []


def _pin(folder: Path, root: bytes, barrier: Any, said: Any) -> None:
    barrier.wait()
    try:
        trust_root(folder, root)
    except BaseException as error:  # noqa: BLE001 the parent reads what it was
        said.put(f"{type(error).__name__}: {error}")
    else:
        said.put("pinned")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("n_roots", [1, 2])
def test_one_root_is_pinned_whole_however_many_processes_begin(
    n_roots: int, tmp_path: Path
) -> None:
    roots = [new_publisher(tmp_path / str(n)).root_file for n in range(n_roots)]
    context, n_each = multiprocessing.get_context("fork"), 4 // n_roots
    for n in range(20):
        folder = tmp_path / f"device-{n}"
        barrier, said = context.Barrier(4), context.Queue()
        workers = [
            context.Process(target=_pin, args=(folder, root, barrier, said))
            for root in roots * n_each
        ]
        for worker in workers:
            worker.start()
        answers = [said.get() for _ in workers]
        for worker in workers:
            worker.join()
        assert answers.count("pinned") == n_each
        others = [answer for answer in answers if answer != "pinned"]
        assert all("TrustError" in answer and "another root already" in answer for answer in others)
        assert (folder / "trusted-root.json").read_bytes() in roots
        assert {path.name for path in folder.iterdir()} == {"trusted-root.json", ".lock"}


def test_a_root_that_is_pinned_is_not_written_again(publisher: Publisher, tmp_path: Path) -> None:
    trust_root(tmp_path / "device", publisher.root_file)
    before = (tmp_path / "device" / "trusted-root.json").stat()
    trust_root(tmp_path / "device", publisher.root_file)
    after = (tmp_path / "device" / "trusted-root.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with pytest.raises(TrustError, match="another root already"):
        trust_root(tmp_path / "device", new_publisher(tmp_path / "stranger").root_file)
