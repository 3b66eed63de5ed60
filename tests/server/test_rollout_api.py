"""What operators call and type: /v1/rollouts and rankcast rollout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from helpers.fleet import publish_version
from rankcast.cli.main import parse
from rankcast.errors import ConfigError, DeliveryError
from rankcast.release.store import Store
from rankcast.server.app import create_app
from rankcast.server.registry import Registry
from rankcast.server.settings import ServerSettings

ORDER = {"adapter": "demo", "version": 2, "stages": ["50%", "100%"]}


class Desk:
    """A server with two versions and four devices, and its database."""

    def __init__(self, root: Path) -> None:
        self.store, self.url = Store(root / "store"), f"sqlite:///{root}/devices.db"
        self.first = publish_version(self.store, None, 1)
        self.second = publish_version(self.store, self.first, 2)
        with closing(Registry(self.url)) as registry:
            self.operator = registry.add("desk", "operator")
            self.device = registry.add("pi-1", groups=["eu"])
            for n in (2, 3, 4):
                registry.add(f"pi-{n}", groups=["us"])

    def typed(self, *words: str) -> int:
        options = ("--store", str(self.store.root), "--database", self.url)
        return parse(["rollout", *words, *options]).run([])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def client(desk: Desk) -> Iterator[TestClient]:
    app = create_app(desk.store, ServerSettings(database=desk.url))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_operators_order_and_change_rollouts(desk: Desk, client: TestClient) -> None:
    client.headers.update(bearer(desk.operator))
    made = client.post("/v1/rollouts", json=ORDER)
    assert made.status_code == 201
    assert (made.json()["state"], made.json()["before"], made.json()["stage"]) == ("running", 1, 1)
    assert [stage["n_devices"] for stage in made.json()["stages"]] == [2, 2]
    again = client.post("/v1/rollouts", json=ORDER)
    assert (again.status_code, "would overlap" in again.text) == (409, True)
    number = made.json()["number"]
    paused = client.post(f"/v1/rollouts/{number}/pause", json={"reason": "lunch"}).json()
    assert (paused["state"], paused["reason"]) == ("paused", "lunch (desk)")
    assert client.post(f"/v1/rollouts/{number}/advance", json={}).status_code == 409
    assert client.post(f"/v1/rollouts/{number}/explode", json={}).status_code == 422
    assert client.post("/v1/rollouts/99/pause", json={}).status_code == 404
    (listed,) = client.get("/v1/rollouts").json()["rollouts"]
    assert listed == client.get(f"/v1/rollouts/{number}").json() == paused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": ["50%"]}, "the last is 100%"),
        ({"stages": ["half", "100%"]}, "A share is from 0% to 100%"),
        ({"groups": ["mars"]}, "No device is in a group 'mars'"),
        ({"window": "03:00-03:00"}, "never opens"),
        ({"window_days": ["mon"]}, "Days are of a window"),
        ({"version": 1}, "no version of demo before 1"),
        ({"before": 9}, "cannot be kept on version 9"),
        ({"max_failed": "many"}, "A limit is a count"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_orders_that_make_no_sense_are_422_in_words(
    desk: Desk, client: TestClient, changes: dict[str, Any], words: str
) -> None:
    answer = client.post("/v1/rollouts", json={**ORDER, **changes}, headers=bearer(desk.operator))
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]


def test_devices_ask_and_do_not_order(desk: Desk, client: TestClient) -> None:
    client.headers.update(bearer(desk.device))
    for method, path in (("GET", "/v1/rollouts"), ("GET", "/v1/rollouts/1"),
                         ("POST", "/v1/rollouts/1/abort")):  # fmt: skip
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, "is no operator" in answer.text) == (403, True)
    assert client.post("/v1/rollouts", json=ORDER).status_code == 403
    newest = client.get("/v1/adapters/demo/assigned").json()
    assert newest == {"adapter": "demo", "version": None, "holds": False, "rollout": None,
                      "reason": ""}  # fmt: skip
    desk.typed("create", "demo", "2", "--group", "us", "--stages", "100%")
    told = client.get("/v1/adapters/demo/assigned", params={"active": 1, "rejected": [2]}).json()
    assert (told["version"], told["holds"]) == (1, False)
    assert client.get("/v1/adapters/none/assigned").status_code == 404
    assert client.get("/v1/adapters/demo/assigned?active=0").status_code == 422


def test_a_server_without_tokens_lets_everyone_look_and_nobody_order(desk: Desk) -> None:
    app = create_app(desk.store, ServerSettings(database=desk.url, needs_token=False))
    with TestClient(app) as client:
        assert client.get("/v1/rollouts").json() == {"rollouts": []}
        assert client.post("/v1/rollouts", json=ORDER).status_code == 403


def test_a_plan_may_be_for_an_older_version(desk: Desk, client: TestClient) -> None:
    client.headers.update(bearer(desk.device))
    wanted = {"adapter": "demo", "base_fingerprint": "0" * 64, "deadline_s": 1e6,
              "link": {"throughput_bps": 1e6}}  # fmt: skip
    for version, manifest in ((1, desk.first), (2, desk.second)):
        plan = client.post("/v1/plan", json={**wanted, "version": version}).json()
        assert plan["version"] == version
        named = {blob["sha256"] for blob in plan["blobs"]}
        assert named == {blob.sha256 for blob in manifest.files[0].blobs()}
    missing = client.post("/v1/plan", json={**wanted, "version": 3})
    assert (missing.status_code, "names versions 1, 2, not 3" in missing.text) == (404, True)


def test_the_commands_do_the_same(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> Any:
        capsys.readouterr()
        assert desk.typed(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    assert shown("status") == []
    made = shown("create", "demo", "2", "--stages", "50%", "100%", "--every-s", "60",
                 "--window", "01:00-05:00", "--window-days", "sat", "sun")  # fmt: skip
    assert (made["number"], made["window"]) == (1, "01:00-05:00 sat sun")
    assert shown("pause", "1", "--reason", "lunch")["state"] == "paused"
    assert shown("resume", "1")["state"] == "running"
    assert shown("advance", "1")["stage"] == 2
    assert shown("abort", "1")["reason"] == "abort by hand"
    assert [body["state"] for body in shown("status")] == ["aborted"]
    desk.typed("status")
    assert capsys.readouterr().out == (
        "1  demo 1 -> 2  aborted, stage 2 of 2, all devices: abort by hand\n"
    )
    desk.typed("status", "1")
    assert "Devices change at 01:00-05:00 sat sun" in capsys.readouterr().out
    desk.typed("pin", "pi-1", "demo", "1")
    assert capsys.readouterr().out == "pi-1 stays on version 1 of demo.\n"
    with pytest.raises(ConfigError, match="There is no rollout 7"):
        desk.typed("abort", "7")
    with pytest.raises(ConfigError, match="--every-s: "):
        desk.typed("create", "demo", "2", "--every-s", "-1")


def test_an_adapter_that_the_store_lacks_is_said(desk: Desk) -> None:
    for words in (("create", "demos", "2"), ("pin", "pi-1", "demos")):
        with pytest.raises(ConfigError, match=r"no release of an adapter 'demos'; .* 'demo'\?"):
            desk.typed(*words)


def test_a_rollout_that_waited_in_vain_has_begun_no_stage(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.typed("create", "demo", "3")
    assert "1  demo 2 -> 3  waiting until version 3 is published" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"is waiting: .* Publish version 3, or abort"):
        desk.typed("pause", "1")
    desk.typed("abort", "1")
    told = capsys.readouterr().out
    assert "aborted before it began, all devices" in told
    assert "1970" not in told


def test_a_store_that_is_none_is_said(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="The store lacks"):
        parse(["rollout", "create", "demo", "2", "--store", str(tmp_path / "nowhere"),
               "--database", desk.url]).run([])  # fmt: skip


def test_an_adapter_stands_for_its_newest_rollout(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.typed("create", "demo", "2", "--stages", "50%", "100%")
    desk.typed("abort", "demo")
    desk.typed("create", "demo", "2", "--stages", "50%", "100%")
    capsys.readouterr()
    assert desk.typed("advance", "demo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["number"] == 2
    desk.typed("status", "demo")
    assert "2  demo 1 -> 2  running, stage 2 of 2" in capsys.readouterr().out


def test_an_unknown_rollout_is_told_which_there_are(desk: Desk) -> None:
    for words in (("advance", "1"), ("pause", "demo"), ("status", "1")):
        with pytest.raises(ConfigError, match="There are none yet; rankcast rollout create"):
            desk.typed(*words)
    desk.typed("create", "demo", "2")
    for word, said in (
        ("7", r"There is no rollout 7\. There are 1 \(demo 2, running\)"),
        ("demi", r"There is no rollout demi; did you mean 'demo'\? There are 1 "),
        ("x", r"There is no rollout x\. There are 1 \(demo 2, running\)"),
    ):
        for action in ("advance", "pause", "resume", "abort", "status"):
            with pytest.raises(ConfigError, match=said):
                desk.typed(action, word)
    for _ in range(6):
        desk.typed("abort", "demo")
        desk.typed("create", "demo", "2")
    with pytest.raises(ConfigError, match=r"There are 7 .* 6 .* 3 \(demo 2, aborted\), …; see"):
        desk.typed("advance", "9")


def test_unknown_groups_and_devices_are_told_which_are_alike(desk: Desk) -> None:
    for words, said in (
        (("create", "demo", "2", "--group", "uss"), "group 'uss'; did you mean 'us'"),
        (("create", "demo", "2", "--group", "mars"), "group 'mars'; groups are eu, us"),
        (("create", "demo", "2", "--device", "pi-44"), "'pi-44' has a token; did you mean 'pi-4'"),
        (("create", "demo", "2", "--device", "x"), "'x' has a token; see rankcast devices list"),
        (("create", "demo", "2", "--share", "50"), "A share is from 0% to 100%"),
        (("create", "demo", "2", "--group", 65 * "x"), "--group: "),
        (("create", "other", "2"), "no release of an adapter 'other'; it has demo"),
        (("pin", "pi-9", "demo", "1"), "no device 'pi-9'; did you mean 'pi-"),
        (("unpin", "pi-9", "demo"), "no device 'pi-9'; did you mean 'pi-"),
        (("unpin", "pi-1", "demos"), "no release of an adapter 'demos'; did you mean 'demo'"),
    ):
        with pytest.raises(ConfigError, match=said):
            desk.typed(*words)


def test_a_pin_can_be_taken_off_when_the_store_no_longer_has_the_adapter(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for leaves in (("pin",), ("unpin",)):
        desk.typed("pin", "pi-1", "demo", "1")
        store = Store(tmp_path / f"other-{leaves[0]}")
        publish_version(store, None, 1)
        for path in store.root.glob("targets/adapters/*"):
            path.rename(path.with_name(path.name.replace("demo", "else")))
        capsys.readouterr()
        options = ("--store", str(store.root), "--database", desk.url)
        assert parse(["rollout", *leaves, "pi-1", "demo", *options]).run([]) == 0
        assert capsys.readouterr().out == "pi-1 goes with the rollouts of demo again.\n"
    assert desk.typed("unpin", "pi-1", "demo") == 0  # nothing is left to take off
