"""What the server answers; see docs/delivery-api.md."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from delivery_data import FINGERPRINT, lay_out, put_release, store_with

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from rankcast.delivery.registry import Registry
from rankcast.delivery.server import create_app
from rankcast.delivery.serving.buckets import Buckets, Rate
from rankcast.delivery.serving.events import _stream
from rankcast.delivery.serving.logs import JsonLines
from rankcast.delivery.serving.middleware import BodyLimit, Observed
from rankcast.delivery.serving.settings import ServerSettings, Serving
from rankcast.delivery.store import Store
from rankcast.link.capacity import Awgn


@contextmanager
def serving(root: Path, store: Store | None = None, **changes: Any) -> Iterator[TestClient]:
    store = store or store_with(root / "store")
    settings = ServerSettings(
        **{"database": f"sqlite:///{root}/devices.db", "is_open": True, **changes}
    )
    with TestClient(create_app(store, settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as found:
        yield found


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
        found = [
            client.post("/v1/plan", json=question(deadline_s=8.0 * n)).json()
            for n in (110, 160, 210)
        ]
    assert [(x["ladder"], x["n_rungs"], x["loss"]) for x in found] == [
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
    status, kind, found = error_of(client.post("/v1/plan", json=question(**changes)))
    assert (status, kind) == (422, "ConfigError")
    assert message in found


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
    async def ask(messages: list[tuple[float, bytes]]) -> int:
        waiting, sent = list(messages), []

        async def receive() -> dict[str, Any]:
            delay, body = waiting.pop(0)
            await asyncio.sleep(delay)
            return {"type": "http.request", "body": body, "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(*_: Any) -> None:
            raise AssertionError

        limit = BodyLimit(app, largest=1000, timeout_s=0.05)
        await limit({"type": "http", "method": "POST", "headers": []}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(ask([(0, b"x" * 400)] * 3)) == 413
    assert asyncio.run(ask([(0.02, b"x")] * 100)) == 408


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

    observed = Observed(app, Nothing(), 0.01)  # pyright: ignore[reportArgumentType]
    with caplog.at_level(logging.WARNING, "rankcast.serve"):
        asyncio.run(observed({"type": "http", "method": "GET"}, None, send))  # pyright: ignore[reportArgumentType]
    assert reached == ["answering"]
    assert "took nothing for 0.01 s" in caplog.text


def test_tokens_let_in_and_revoked_or_foreign_ones_do_not(tmp_path: Path) -> None:
    with (
        closing(Registry(f"sqlite:///{tmp_path}/devices.db")) as registry,
        serving(tmp_path, is_open=False, poll_s=0.01) as client,
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
            assert "rankcast tokens add" in message
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
        serving(tmp_path, is_open=False, calls=Rate(0.1, 3)) as client,
    ):
        one, two = ({"Authorization": f"Bearer {registry.add(name)}"} for name in ("a", "b"))
        asked = [client.get("/v1/adapters", headers=one) for _ in range(4)]
        assert [x.status_code for x in asked] == [200, 200, 200, 429]
        assert 5 <= int(asked[-1].headers["retry-after"]) <= 10
        assert "Too many requests" in error_of(asked[-1])[2]
        assert client.get("/v1/adapters", headers=two).status_code == 200
        assert client.get("/metadata/timestamp.json", headers=one).status_code == 200


def test_a_bucket_fills_at_its_rate() -> None:
    now = [0.0]
    buckets = Buckets(Rate(2.0, 3), lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.25
    assert buckets.take("a") == 0.25
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    now[0] = 1e6
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


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
    registry = client.app.state.serving.registry  # pyright: ignore[reportFunctionMemberAccess]
    plan, told = registry.events_after(0)
    assert (plan.kind, plan.device, plan.body["budget_bits"]) == ("plan", "testclient", 4800.0)
    assert (told.kind, told.body) == ("report", report)
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
    app = create_app(store, ServerSettings(database=database, poll_s=0.01, heartbeat_s=0.05))
    state: Serving = app.state.serving
    for i in range(3):
        state.registry.record(f"pi-{i % 2}", "plan", {"i": i})

    async def read(after: int, device: str | None, n: int) -> list[str]:
        found: list[str] = []
        async for text in _stream(state, after, device):
            found.append(text)
            if len(found) == n:
                state.stopping.set()
        state.stopping.clear()
        return found

    head, *told, beat = asyncio.run(read(1, None, 4))
    assert head == "retry: 2000\n\n"
    assert beat.startswith(":")
    assert [line.split("\n")[0] for line in told] == ["id: 2", "id: 3"]
    assert told[0].split("\n")[1] == "event: plan"
    assert json.loads(told[0].split("\n")[2].removeprefix("data: "))["i"] == 1
    mine = asyncio.run(read(0, "pi-0", 3))
    assert [text.split("\n")[0] for text in mine[1:]] == ["id: 1", "id: 3"]
    state.registry.close()


def test_adapters_are_listed(client: TestClient) -> None:
    (found,) = client.get("/v1/adapters").json()["adapters"]
    manifest = found.pop("manifest")
    assert found == {"name": "sst2", "version": 1, "n_rungs": [3], "n_bytes": 1000,
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

    publisher, seen = threading.Thread(target=publish), []
    with serving(tmp_path, store, calls=Rate(1e6, 10**6)) as client:
        publisher.start()
        while publisher.is_alive() or not seen or seen[-1] < 29:
            answer = client.post("/v1/plan", json=question(deadline_s=1e6)).json()
            seen.append(answer["version"])
            (ladder,) = releases[seen[-1]].ladders
            whole = (ladder.header, *(rung.blob for rung in ladder.rungs))
            assert [b["sha256"] for b in answer["blobs"]] == [blob.sha256 for blob in whole]
    assert seen == sorted(seen)


def test_an_empty_store_lives_but_is_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, Store(tmp_path / "empty")) as client:
        assert client.get("/healthz").text == "ok\n"
        status, _, message = error_of(client.get("/readyz"))
        assert (status, "publish an adapter" in message) == (503, True)
        assert error_of(client.post("/v1/plan", json=question()))[0] == 503


def test_a_database_that_fails_says_so_and_hides_why(client: TestClient, tmp_path: Path) -> None:
    client.app.state.serving.registry.close()  # pyright: ignore[reportFunctionMemberAccess]
    for path in tmp_path.glob("devices.db*"):
        path.unlink()
    (tmp_path / "devices.db").mkdir()
    status, _, message = error_of(client.get("/readyz"))
    assert (status, message) == (503, "The database does not answer.")
    assert client.get("/healthz").status_code == 200


def test_a_request_is_one_line_of_json(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "rankcast.serve"):
        client.get("/v1/adapters")
        client.get("/nowhere%0A", headers={"Authorization": "Bearer rc_secret"})
    first, second = (json.loads(JsonLines().format(record)) for record in caplog.records
                     if hasattr(record, "fields"))  # fmt: skip
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
        "/v1/events", "/healthz", "/readyz", "/metrics",
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
