"""A device that finds out later that it does not work with its adapter says so."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from helpers.commands import Call
from helpers.edge import EdgeServer, client_of, release_of
from rankcast.edge.report import report_unhealthy
from rankcast.edge.state import DeviceState, ReleasePrefix
from rankcast.errors import DeliveryError, UnavailableError
from rankcast.release.http import http_client

ACTIVE = ReleasePrefix("demo", 3, 1, ("0" * 64, "1" * 64, "2" * 64))


def answering(status: int, seen: list[httpx2.Request] | None = None) -> httpx2.Client:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if seen is not None:
            seen.append(request)
        return httpx2.Response(status, headers={"WWW-Authenticate": "Bearer"})

    return http_client("token", "http://cloud", httpx2.MockTransport(answer))


def test_the_command_reports_the_active_version(
    server: EdgeServer, tmp_path: Path, call: Call
) -> None:
    server.publish(release_of(1))
    client_of(server, tmp_path).sync()
    server.publish(release_of(2), version=2)  # the device has not seen it
    words = ["edge", "report", "unhealthy", "--server", server.url, "--reason", "answers nothing",
             "--folder", str(tmp_path / "state")]  # fmt: skip
    assert "version 1 of demo does not work here" in call.ok(*words)
    report = server.reports[-1]
    assert (report["event"], report["version"], report["message"]) == (
        "unhealthy", 1, "answers nothing"
    )  # fmt: skip
    assert report["n_rungs"] == 6
    out = json.loads(call.ok(*words, "--token", "of-this-device", "--json"))
    assert out == {"adapter": "demo", "version": 1, "event": "unhealthy"}
    assert len([r for r in server.reports if r["event"] == "unhealthy"]) == 2


def test_what_the_command_cannot_report(server: EdgeServer, tmp_path: Path, call: Call) -> None:
    words = ["edge", "report", "unhealthy", "--server", server.url, "--reason", "x", "--folder"]
    assert "no device's folder" in call.refused(*words, str(tmp_path))
    server.publish(release_of(1))
    client_of(server, tmp_path).sync()
    words.append(str(tmp_path / "state"))
    assert "not both" in call.refused(*words, "--token", "a", "--token-file", "b")
    assert "no address of a server" in call.refused(*words, "--server", "cloud")
    assert "unhealthy" in call.refused("edge", "report", "healthy", *words[3:])
    assert "--reason" in call.refused(*words[:5], *words[7:])
    assert not [r for r in server.reports if r["event"] == "unhealthy"]


def test_a_report_says_what_failed_and_no_more_than_the_server_takes() -> None:
    seen: list[httpx2.Request] = []
    state = DeviceState("demo", active=ACTIVE, newest_version=4, throughput_bps=2e6)
    report_unhealthy(answering(204, seen), state, 600 * "x")
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", "/v1/report")
    assert json.loads(request.content) == {
        "adapter": "demo", "version": 3, "ladder": 1, "n_rungs": 2, "event": "unhealthy",
        "throughput_bps": 2e6, "message": 500 * "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, DeliveryError, "does not accept this device's token"),
        (404, DeliveryError, "only rankcast serve takes reports"),
        (405, DeliveryError, "only rankcast serve takes reports"),
        (422, DeliveryError, "no server of adapters"),
        (429, UnavailableError, "Try again later"),
        (503, UnavailableError, "Try again later"),
    ],
)
def test_a_server_that_does_not_take_the_report_is_an_error(
    status: int, error: type[DeliveryError], words: str
) -> None:
    with pytest.raises(error, match=words):
        report_unhealthy(answering(status), DeviceState("demo", active=ACTIVE), "x")


def test_a_server_that_is_away_is_an_error() -> None:
    def away(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    http = http_client(None, "http://cloud", httpx2.MockTransport(away))
    with pytest.raises(UnavailableError, match=r"did not arrive .* Try again later"):
        report_unhealthy(http, DeviceState("demo", active=ACTIVE), "x")


def test_without_an_adapter_nothing_is_unhealthy() -> None:
    seen: list[httpx2.Request] = []
    with pytest.raises(DeliveryError, match="No version of demo is active"):
        report_unhealthy(answering(204, seen), DeviceState("demo"), "x")
    assert not seen
