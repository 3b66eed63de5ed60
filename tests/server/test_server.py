"""What the server answers; see docs/delivery-api.md."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.stores import FINGERPRINT, lay_out, put_release, store_with
from helpers.waiting import wait_until

pytest.importorskip("fastapi")

from starlette.requests import Request
from starlette.testclient import TestClient

from rankcast.link.capacity import Awgn
from rankcast.rate_limit import Rate
from rankcast.release.store import Store
from rankcast.server.app import create_app
from rankcast.server.events import events
from rankcast.server.middleware import BodyLimit, RequestMonitor
from rankcast.server.process import JsonLines, PlainLines
from rankcast.server.registry import Registry
from rankcast.server.settings import ServerSettings, ServerState


@contextmanager
def serving(root: Path, store: Store | None = None, **changes: Any) -> Iterator[TestClient]:
    store = store or store_with(root / "store")
    settings = ServerSettings(
        **{"database": f"sqlite:///{root}/devices.db", "needs_token": False, **changes}
    )
    with TestClient(create_app(store, settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def question(**changes: Any) -> dict[str, Any]:
    """Ask for the release of `put_release`: a header of 100 bytes, chunks of 200, 300, 400."""
    return {
        "adapter": "sst2",
        "base_fingerprint": FINGERPRINT,
        "link": {"throughput_bps": 1.0},
        "deadline_s": 8.0 * 600,
        "held": [],
        **changes,
    }


def error_of(answer: Any) -> tuple[int, str, str]:
    assert set(answer.json()) == {"error"}
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, answer.json()["error"]["type"], answer.json()["error"]["message"]


def blobs_of(client: TestClient) -> list[str]:
    """Return header and chunks of the release, as the server names them."""
    answer = client.post("/v1/plan", json=question(deadline_s=1e6)).json()
    return [blob["sha256"] for blob in answer["blobs"]]


@pytest.mark.parametrize(
    ("n_bytes", "n_rungs"), [(300, 1), (599.9, 1), (600, 2), (999.9, 2), (1000, 3), (1e5, 3)]
)
def test_the_budget_decides_how_many_chunks(
    client: TestClient, n_bytes: float, n_rungs: int
) -> None:
    answer = client.post("/v1/plan", json=question(deadline_s=8.0 * n_bytes)).json()
    sizes = [100, 200, 300, 400][: n_rungs + 1]
    assert [blob["n_bytes"] for blob in answer["blobs"]] == sizes
    assert answer["bits"] == 8 * sum(sizes)
    assert (answer["adapter"], answer["version"], answer["ladder"]) == ("sst2", 1, 0)
    assert answer["n_rungs"] == n_rungs
    assert answer["loss"] == pytest.approx(1.0 - 0.1 * (n_rungs - 1))


def test_blobs_that_the_device_holds_are_neither_listed_nor_paid_for(client: TestClient) -> None:
    blobs = blobs_of(client)
    wanted = question(deadline_s=8.0 * 400, held=blobs[:3])
    answer = client.post("/v1/plan", json=wanted).json()
    assert answer["n_rungs"] == 3
    assert answer["blobs"] == [{"sha256": blobs[3], "n_bytes": 400}]
    none = client.post("/v1/plan", json=question(deadline_s=1e-9, held=blobs[:3])).json()
    assert (none["n_rungs"], none["blobs"], none["bits"]) == (2, [], 0)


def test_the_ladder_of_lowest_loss_wins(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    sizes, losses = [[10, 100, 100], [10, 150]], [[0.9, 0.5], [0.7]]
    lay_out(store, [put_release(store, sizes=sizes, losses=losses)])
    with serving(tmp_path, store) as client:
        plans = [
            client.post("/v1/plan", json=question(deadline_s=8.0 * n)).json()
            for n in (110, 160, 210)
        ]
    assert [(x["ladder"], x["n_rungs"], x["loss"]) for x in plans] == [
        (0, 1, 0.9), (1, 1, 0.7), (0, 2, 0.5),
    ]  # fmt: skip


def test_snr_and_bandwidth_make_the_budget_of_shannon(client: TestClient) -> None:
    rate = float(Awgn().spectral_efficiency([5.0])[0]) * 1e6  # pyright: ignore[reportArgumentType]
    link = {"snr_db": 5.0, "bandwidth_hz": 1e6, "rate_model": "awgn"}
    for factor, n_rungs in ((1.0001, 2), (0.9999, 1)):
        wanted = question(link=link, deadline_s=factor * 8 * 600 / rate)
        assert client.post("/v1/plan", json=wanted).json()["n_rungs"] == n_rungs


@pytest.mark.parametrize(
    "link",
    [
        {"rate_model": "nr_64qam"},
        {"rate_model": "nakagami_outage", "rate_params": {"m": 2.0, "epsilon": 0.1}},
        {"rate_model": "truncated_shannon",
         "rate_params": {"efficiency": 0.6, "gap_db": 0.0, "largest": 4.4}},
        {},
    ],
)  # fmt: skip
def test_every_kind_of_rate_model_is_understood(client: TestClient, link: dict[str, Any]) -> None:
    wanted = question(link={"snr_db": 10.0, "bandwidth_hz": 5e6, **link}, deadline_s=1.0)
    assert client.post("/v1/plan", json=wanted).json()["n_rungs"] == 3


def test_what_no_link_carries_is_named_with_its_shortfall(client: TestClient) -> None:
    status, kind, message = error_of(client.post("/v1/plan", json=question(deadline_s=8.0 * 299)))
    assert (status, kind) == (422, "InfeasibleDeadlineError")
    assert "needs 2,400 bits, but the link carries only 2,392" in message
    silent = {"snr_db": -100.0, "bandwidth_hz": 5e6, "rate_model": "nr_64qam"}
    status, kind, _ = error_of(client.post("/v1/plan", json=question(link=silent, deadline_s=1.0)))
    assert (status, kind) == (422, "InfeasibleDeadlineError")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_link_outside_physics_is_refused(client: TestClient) -> None:
    link = {"snr_db": 5.0, "bandwidth_hz": 5e6, "rate_model": "nakagami_ergodic"}
    for m in (0.1, 1e300):
        wanted = question(link={**link, "rate_params": {"m": m}})
        assert error_of(client.post("/v1/plan", json=wanted))[:2] == (422, "LinkError")


def test_an_adapter_that_is_not_there_and_a_base_that_does_not_fit(client: TestClient) -> None:
    status, _, message = error_of(client.post("/v1/plan", json=question(adapter="sst3")))
    assert status == 404
    assert "no adapter 'sst3'; did you mean 'sst2'?" in message
    wrong = question(base_fingerprint="0" * 64)
    status, _, message = error_of(client.post("/v1/plan", json=wrong))
    assert status == 409
    assert f"is for tiny (fingerprint {FINGERPRINT})" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"link": {"snr_db": 5.0}}, "link.bandwidth_hz: Field required"),
        ({"link": {"snr_db": 5.0, "bandwidth_hz": 0}}, "greater than 0"),
        ({"link": {"snr_db": 1e9, "bandwidth_hz": 1e6}}, "less than or equal to 300"),
        ({"link": {"snr_db": "5", "bandwidth_hz": 1e6}}, "valid number"),
        ({"link": {"snr_db": True, "bandwidth_hz": 1e6}}, "valid number"),
        ({"link": {"throughput_bps": 1.0, "snr_db": 5.0}}, "link.snr_db: Extra inputs"),
        ({"link": {"throughput_bps": -1.0}}, "greater than 0"),
        ({"link": {}}, "link.snr_db: Field required"),
        ({"link": None}, "link"),
        ({"link": {"snr_db": 5.0, "bandwidth_hz": 1e6, "rate_model": "awgm"}}, "mean 'awgn'?"),
        ({"link": {"snr_db": 5.0, "bandwidth_hz": 1e6, "rate_model": "rician_outage"}}, "k_factor"),
        (
            {"link": {"snr_db": 5.0, "bandwidth_hz": 1e6, "rate_params": {"m": 1.0}}},
            "no parameters",
        ),
        ({"deadline_s": 0}, "deadline_s: Input should be greater than 0"),
        ({"held": ["AB" * 32]}, "held.0: String should match"),
        ({"held": ["ab" * 32 + "\n"]}, "held.0: String should"),
        ({"held": ["ab" * 32] * 8193}, "held: List should have at most 8192"),
        ({"held": "ab" * 32}, "held: Input should be a valid list"),
        ({"adapter": "../sst2"}, "adapter: String should match"),
        ({"adapter": 3}, "adapter: Input should be a valid string"),
        ({"base_fingerprint": "ab"}, "base_fingerprint: String should match"),
        ({"surprise": 1}, "surprise: Extra inputs"),
    ],
)
def test_questions_outside_their_limits_are_refused_in_words(
    client: TestClient, changes: dict[str, Any], message: str
) -> None:
    status, kind, problem = error_of(client.post("/v1/plan", json=question(**changes)))
    assert (status, kind) == (422, "ConfigError")
    assert message in problem


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000,
        json.dumps(question()).replace("1.0", "NaN").encode(),
        json.dumps(question()).replace("1.0", "Infinity").encode(),
        json.dumps(question()).replace("1.0", "1e999").encode(),
    ],
    ids=range(9),
)  # fmt: skip
def test_bodies_that_are_no_question_are_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/plan", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer)[0] in (400, 422)


def test_a_body_of_another_type_is_refused(client: TestClient) -> None:
    body = json.dumps(question())
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        status, _, message = error_of(client.post("/v1/plan", content=body, headers=headers))
        assert (status, "Content-Type: application/json" in message) == (415, True)


def test_a_body_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with serving(tmp_path, largest_body=2000) as client:
        assert client.post("/v1/plan", json=question(held=["ab" * 32] * 20)).status_code == 200
        status, _, message = error_of(client.post("/v1/plan", content=b"x" * 2001))
        assert (status, "2,000 bytes" in message) == (413, True)


def test_the_limits_on_bodies_hold_without_a_length_and_against_slow_ones() -> None:
    async def ask(pieces: list[bytes], timeout_s: float) -> int:
        waiting, sent = list(pieces), []

        async def receive() -> dict[str, Any]:
            if not waiting:
                await asyncio.Event().wait()  # the rest never comes
            return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(*_: Any) -> None:
            raise AssertionError

        limit = BodyLimit(app, largest=1000, timeout_s=timeout_s)
        await limit({"type": "http", "method": "POST", "headers": []}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask([b"x" * 400] * 3, timeout_s=1000.0)) == 413
    assert asyncio.run(ask([b"x"] * 5, timeout_s=0.01)) == 408


def test_an_answer_that_nobody_takes_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    class Nothing:
        def labels(self, *_: str) -> Nothing:
            return self

        def inc(self, _: float = 1) -> None:
            pass

        requests = sent_bytes = property(lambda self: self)

    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append("answering")
        await send({"type": "http.response.start", "status": 200})
        reached.append("taken")

    async def send(_: Any) -> None:
        await asyncio.sleep(3600)

    monitor = RequestMonitor(app, Nothing(), 0.01)  # pyright: ignore[reportArgumentType]
    with caplog.at_level(logging.WARNING, "rankcast.serve"):
        asyncio.run(monitor({"type": "http", "method": "GET"}, None, send))  # pyright: ignore[reportArgumentType]
    assert reached == ["answering"]
    assert "read nothing for 0.01 s" in caplog.text


def test_tokens_let_in_and_revoked_or_foreign_ones_do_not(tmp_path: Path) -> None:
    with (
        closing(Registry(f"sqlite:///{tmp_path}/devices.db")) as registry,
        serving(tmp_path, needs_token=True, poll_s=0.01) as client,
    ):
        token, other = registry.add("pi-1"), registry.add("pi-2")
        good = {"Authorization": f"Bearer {token}"}
        assert client.post("/v1/plan", json=question(), headers=good).status_code == 200
        for headers in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": token},
                        {"Authorization": "Basic cGk6cGk="},
                        {"Authorization": "Bearer \xff".encode("latin-1")}):  # fmt: skip
            answer = client.post("/v1/plan", json=question(), headers=headers)
            status, _, message = error_of(answer)
            assert (status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "rankcast devices add" in message
        for path in ("/v1/adapters", "/v1/events", "/metadata/timestamp.json",
                     "/blobs/ab/" + "ab" * 32,
                     f"/targets/adapters/{'ab' * 32}.sst2.json"):  # fmt: skip
            assert client.get(path).status_code == 401
            assert client.post("/v1/report", json={}).status_code in (401, 422)
        status, _, message = error_of(client.get("/v1/events?device=pi-2", headers=good))
        assert (status, "token is of pi-1" in message) == (403, True)
        registry.revoke("pi-1")
        for path in ("/v1/adapters", "/v1/allowed"):
            assert error_of(client.get(path, headers=good))[0] == 401
        still = {"Authorization": f"Bearer {other}"}
        assert client.get("/v1/adapters", headers=still).status_code == 200
        assert client.get("/v1/allowed", headers=still).status_code == 204
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200


def test_too_many_requests_wait_and_other_devices_do_not(tmp_path: Path) -> None:
    with (
        closing(Registry(f"sqlite:///{tmp_path}/devices.db")) as registry,
        serving(tmp_path, needs_token=True, calls=Rate(1e-6, 3)) as client,
    ):
        one, two = ({"Authorization": f"Bearer {registry.add(name)}"} for name in ("a", "b"))
        asked = [client.get("/v1/adapters", headers=one) for _ in range(4)]
        assert [x.status_code for x in asked] == [200, 200, 200, 429]
        assert 990_000 <= int(asked[-1].headers["retry-after"]) <= 1_000_000
        assert "Too many requests" in error_of(asked[-1])[2]
        assert client.get("/v1/adapters", headers=two).status_code == 200
        assert client.get("/metadata/timestamp.json", headers=one).status_code == 200


def test_reports_and_plans_become_events_and_numbers(client: TestClient) -> None:
    report = {"adapter": "sst2", "version": 1, "ladder": 0, "n_rungs": 2, "event": "activated",
              "throughput_bps": 2.1e6, "received_bits": 61234, "elapsed_s": 0.8,
              "message": ""}  # fmt: skip
    assert client.post("/v1/plan", json=question()).status_code == 200
    assert client.post("/v1/plan", json=question(deadline_s=1e-9)).status_code == 422
    answer = client.post("/v1/report", json=report)
    assert (answer.status_code, answer.content) == (204, b"")
    bad = client.post("/v1/report", json={**report, "event": "exploded"})
    assert "event: Input should be 'fetched', 'activated'" in error_of(bad)[2]
    registry = client.app.state.server.registry  # pyright: ignore[reportFunctionMemberAccess]
    plan, reported = registry.events_after(0)
    assert (plan.kind, plan.device, plan.body["budget_bits"]) == ("plan", "testclient", 4800.0)
    assert (reported.kind, reported.body) == ("report", report)
    text = client.get("/metrics").text
    for line in (
        'rankcast_requests_total{method="POST",route="/v1/plan",status="200"} 1.0',
        'rankcast_requests_total{method="POST",route="/v1/plan",status="422"} 1.0',
        'rankcast_reports_total{event="activated"} 1.0',
        'rankcast_infeasible_plans_total{adapter="sst2"} 1.0',
        "rankcast_plan_seconds_count 2.0",
        "rankcast_active_devices 1.0",
    ):
        assert line in text


def test_bytes_are_counted_by_route(client: TestClient) -> None:
    sha256 = blobs_of(client)[3]
    client.get(f"/blobs/{sha256[:2]}/{sha256}")
    line = 'rankcast_sent_bytes_total{route="/blobs/{prefix}/{sha256}"} 400.0'
    assert line in client.get("/metrics").text


def test_events_are_streamed_from_any_place_and_end_with_the_server(tmp_path: Path) -> None:
    store = store_with(tmp_path / "store")
    database = f"sqlite:///{tmp_path}/devices.db"
    app = create_app(store, ServerSettings(database=database, poll_s=0.01))
    state: ServerState = app.state.server
    for i in range(3):
        state.registry.record(f"pi-{i % 2}", "plan", {"i": i})

    async def read(after: int, device: str | None, n: int) -> list[Any]:
        request, seen = Request({"type": "http", "app": app}), []
        async for event in events(request, (after, device)):
            seen.append(event)
            if len(seen) == n:
                state.stopping.set()
        state.stopping.clear()
        return seen

    first, *rest = asyncio.run(read(1, None, 3))
    assert first.retry == 2000
    assert [(event.id, event.event) for event in rest] == [("2", "plan"), ("3", "plan")]
    assert json.loads(rest[0].raw_data)["i"] == 1
    mine = asyncio.run(read(0, "pi-0", 3))
    assert [event.id for event in mine[1:]] == ["1", "3"]
    state.registry.close()


def test_events_have_the_lines_of_server_sent_events(client: TestClient) -> None:
    client.post("/v1/plan", json=question())
    answer = client.get("/v1/events?after=0&follow=false")
    assert answer.headers["content-type"].startswith("text/event-stream")
    hello, event, end = answer.text.split("\n\n")
    assert (hello, end) == ("retry: 2000", "")
    fields = dict(line.split(": ", 1) for line in event.split("\n"))
    assert (fields["id"], fields["event"]) == ("1", "plan")
    assert json.loads(fields["data"])["n_rungs"] == 2


def test_adapters_are_listed(client: TestClient) -> None:
    (adapter,) = client.get("/v1/adapters").json()["adapters"]
    manifest = adapter.pop("manifest")
    assert adapter == {"name": "sst2", "version": 1, "n_rungs": [3], "n_bytes": 1000,
                     "base": {"name": "tiny", "fingerprint": FINGERPRINT}}  # fmt: skip
    assert client.get(manifest).json()["name"] == "sst2"


def test_a_publish_between_requests_serves_one_release_or_the_other(tmp_path: Path) -> None:
    store = store_with(tmp_path / "store")
    with serving(tmp_path, store) as client:
        old = blobs_of(client)
        new = put_release(store, version=2)
        lay_out(store, [new], version=2)
        answer = client.post("/v1/plan", json=question(deadline_s=1e6, held=old)).json()
        assert (answer["version"], len(answer["blobs"])) == (2, 4)
        for sha256 in (*old, *(blob.sha256 for blob in new.blobs)):
            assert client.get(f"/blobs/{sha256[:2]}/{sha256}").status_code == 200


def test_publishing_all_the_while_never_mixes_releases(tmp_path: Path) -> None:
    store = store_with(tmp_path / "store")
    releases = {1: put_release(store)}

    def publish() -> None:
        for version in range(2, 30):
            releases[version] = put_release(store, version=version)
            lay_out(store, [releases[version]], version)

    seen: list[int] = []

    def ask(client: TestClient) -> int:
        answer = client.post("/v1/plan", json=question(deadline_s=1e6)).json()
        seen.append(answer["version"])
        (file,) = releases[seen[-1]].files
        assert [b["sha256"] for b in answer["blobs"]] == [b.sha256 for b in file.blobs()]
        return seen[-1]

    many = Rate(1e6, 10**6)
    with serving(tmp_path, store, calls=many) as client, ThreadPoolExecutor(1) as pool:
        publisher = pool.submit(publish)
        while not publisher.done():
            ask(client)
        publisher.result()
        wait_until(lambda: ask(client) == 29)
    assert seen == sorted(seen)


def test_an_empty_store_lives_but_is_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, Store(tmp_path / "empty")) as client:
        assert client.get("/healthz").text == "ok\n"
        status, _, message = error_of(client.get("/readyz"))
        assert (status, "publish an adapter" in message) == (503, True)
        assert error_of(client.post("/v1/plan", json=question()))[0] == 503


def test_a_database_that_fails_says_so_and_hides_why(tmp_path: Path) -> None:
    settings = ServerSettings(database=f"sqlite:///{tmp_path}/devices.db")
    app = create_app(store_with(tmp_path / "store"), settings)
    app.state.server.registry.close()
    for path in tmp_path.glob("devices.db*"):
        path.unlink()
    (tmp_path / "devices.db").mkdir()
    client = TestClient(app)  # without a context nothing starts that could write meanwhile
    status, _, message = error_of(client.get("/readyz"))
    assert (status, message) == (503, "The database does not answer.")
    assert client.get("/healthz").status_code == 200


def test_a_request_is_one_line_for_machines_or_for_people(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rankcast.serve"):
        client.get("/v1/adapters")
        client.get("/nowhere%0A", headers={"Authorization": "Bearer rc_secret"})
    records = [record for record in caplog.records if hasattr(record, "fields")]
    plain = PlainLines().format(records[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d request device=testclient method=GET .* bytes=\d+", plain)
    first, second = (json.loads(JsonLines().format(record)) for record in records)
    assert first["ms"] > 0
    wanted = {"device": "testclient", "method": "GET", "route": "/v1/adapters", "status": 200}
    assert {key: first[key] for key in wanted} == wanted
    assert (second["route"], second["status"]) == ("unmatched", 404)
    assert "secret" not in json.dumps(second)


def test_the_description_names_every_route_with_its_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/blobs/{prefix}/{sha256}", "/metadata/{name}", "/targets/adapters/{name}", "/v1/plan",
        "/v1/report", "/v1/adapters", "/v1/adapters/{name}", "/v1/allowed", "/v1/devices",
        "/v1/events", "/healthz", "/readyz", "/metrics", "/v1/adapters/{name}/assigned",
        "/v1/rollouts", "/v1/rollouts/{number}", "/v1/rollouts/{number}/{action}",
    }  # fmt: skip
    plan = schema["paths"]["/v1/plan"]["post"]
    assert {"200", "401", "404", "409", "413", "422", "429"} <= set(plan["responses"])
    assert plan["security"] == [{"HTTPBearer": []}]
    for status in ("404", "409", "422"):
        content = plan["responses"][status]["content"]["application/json"]
        assert content["schema"]["$ref"].endswith("/ErrorAnswer")
    for name in ("PlanRequest", "PlanAnswer", "ReportRequest"):
        assert schema["components"]["schemas"][name]["examples"]


def test_other_methods_and_paths_are_refused_in_the_same_shape(client: TestClient) -> None:
    assert error_of(client.get("/v1/plan"))[0] == 405
    assert error_of(client.get("/v2"))[0] == 404
    for path in ("/healthz", "/readyz", "/metrics", "/v1/adapters"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
