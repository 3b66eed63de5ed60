"""A device in a cell: it fetches step by step, waits for its turn, and never past its deadline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from helpers.edge import FakeTime, client_of, release_of, serving
from helpers.stores import put_release
from rankcast.edge.advice import Advice, CellFullError, MeasuredLink, RadioLink, advise
from rankcast.edge.cell_steps import fetch_in_steps
from rankcast.edge.fetch import Fetched
from rankcast.errors import UnavailableError
from rankcast.release.manifest import Manifest
from rankcast.release.plan import FetchPlan
from rankcast.release.store import Store


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return put_release(Store(tmp_path / "made"))


class Device:
    """Answers in order; each fetch takes a second, and 1,000 bytes come."""

    def __init__(self, manifest: Manifest, *answers: float) -> None:
        self.manifest, self.answers = manifest, list(answers)  # floats are waits
        self.time, self.asked_s = FakeTime(tick_s=0.0), []

    def ask(self, left_s: float) -> Advice:
        """Take the next answer: chunks, 0 for nothing more, or a wait in seconds."""
        self.asked_s.append(left_s)
        answer = self.answers.pop(0)
        if isinstance(answer, float):
            raise CellFullError("full", answer)
        held = frozenset() if answer else frozenset(b.sha256 for b in self.manifest.blobs)
        plan = FetchPlan.of(self.manifest, 0, answer or 1, held)
        return Advice(plan, "server", "shared", asks_again=bool(self.answers))

    def fetch(self, plan: FetchPlan, left_s: float) -> Fetched:
        late = left_s < 1.0
        self.time.now += min(1.0, left_s)
        return Fetched(1000, 1.0, plan.missing if late else ())

    def step(self, left_s: float = 10.0) -> tuple[int, float, int]:
        advice, left_s, came = fetch_in_steps(
            self.ask, self.fetch, left_s, self.time.clock, self.time.sleep
        )
        return advice.plan.n_chunks, left_s, came.n_bytes


def test_a_device_asks_again_after_each_step(manifest: Manifest) -> None:
    device = Device(manifest, 1, 2, 3)
    assert device.step() == (3, 8.0, 2000)  # the last is for the caller to fetch
    assert device.asked_s == [10.0, 9.0, 8.0]


def test_it_waits_for_its_turn_while_there_is_time(manifest: Manifest) -> None:
    device = Device(manifest, 2.0, 1, 3.0, 2, 9.0)
    assert device.step() == (2, 3.0, 2000)  # a wait of 9 s of the 3 that are left ends it
    assert device.time.slept == [2.0, 3.0]


def test_it_stops_at_its_deadline(manifest: Manifest) -> None:
    assert Device(manifest, 1, 2, 3).step(1.5) == (2, 0.0, 2000)
    with pytest.raises(CellFullError):
        Device(manifest, 2.0, 2.0, 2.0, 2.0).step(5.0)


def test_an_answer_that_brings_nothing_ends_it(manifest: Manifest) -> None:
    assert Device(manifest, 0, 0, 0).step() == (1, 10.0, 0)


def answered(manifest: Manifest, link: Any, status: int, body: Any, **headers: str) -> Advice:
    def handle(request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Prefer"] == "steps"
        names = {key.replace("_", "-"): value for key, value in headers.items()}
        body_now = httpx2.ByteStream(json.dumps(body).encode())
        return httpx2.Response(status, headers=names, stream=body_now)

    http = httpx2.Client(transport=httpx2.MockTransport(handle), base_url="http://cloud")
    return advise(http, manifest, link, 10.0, frozenset())


@pytest.mark.parametrize("link", [MeasuredLink(1e6), RadioLink(10.0, 1e6)])
def test_a_full_cell_is_no_reason_to_plan_alone(
    manifest: Manifest, link: MeasuredLink | RadioLink
) -> None:
    body = {"error": {"type": "DeliveryError", "message": "No room."}}
    for asked, wait_s in (("7", 7.0), ("0", 1.0), ("soon", float("inf"))):
        with pytest.raises(CellFullError, match="No room") as caught:
            answered(manifest, link, 429, body, Rankcast_Cell="north", Retry_After=asked)
        assert caught.value.wait_s == wait_s
    with pytest.raises(CellFullError):
        answered(manifest, link, 429, {"error": []}, Rankcast_Cell="north")
    assert answered(manifest, link, 429, body).planned_by == "device"


@pytest.mark.parametrize("told", [None, 3, [], {"reason": 5}, {"asks_again": "yes"}])
def test_what_is_no_cell_does_no_harm(manifest: Manifest, told: Any) -> None:
    body = {"version": 1, "ladder": 0, "n_rungs": 2, "blobs": [], "cell": told}
    assert not answered(manifest, MeasuredLink(1e6), 200, body).asks_again


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    with serving(tmp_path) as server:
        yield server


def test_a_sync_says_what_it_had_of_the_cell(server: Any, tmp_path: Path) -> None:
    manifest = server.publish(release_of(1))
    server.faults.plan = {
        "version": 1, "ladder": 0, "n_rungs": 3, "blobs": [],
        "cell": {"name": "north", "airtime_share": 0.2, "asks_again": True, "reason": "20% of it."},
    }  # fmt: skip
    result = client_of(server, tmp_path).sync()
    assert result.cell == "20% of it."
    assert result.message.endswith("3 of 6 chunks; sync again for the rest. 20% of it.")
    assert result.active.n_chunks == 3
    assert result.n_bytes == sum(b.n_bytes for b in manifest.files[0].blobs(3))
    assert len(server.asked) == 2  # once more when the step was here
    assert len(server.reports) == 1
    assert client_of(server, tmp_path).sync().outcome == "up-to-date"


def test_a_full_cell_leaves_the_active_adapter(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(release_of(1))

    def full(*args: object, **kwargs: object) -> Advice:
        raise CellFullError("No room in cell north.", 1e9)

    with monkeypatch.context() as patch:
        patch.setattr("rankcast.edge.sync.advise", full)
        with pytest.raises(UnavailableError, match=r"no adapter for this device yet\. No room"):
            client_of(server, tmp_path).sync()
    assert client_of(server, tmp_path).sync().outcome == "activated"
    server.publish(release_of(2), version=2)
    monkeypatch.setattr("rankcast.edge.sync.advise", full)
    result = client_of(server, tmp_path).sync()
    assert (result.outcome, result.active.version) == ("up-to-date", 1)
    assert "No room in cell north." in result.message
