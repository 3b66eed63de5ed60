"""A rollout over 200 devices with the client's own decisions, a real app and a real database.

Ten of the devices are real: they fetch chunks, verify, activate and go back as on a Pi. They are
among the first stage of version 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from helpers.fleet import (
    DirectApp,
    RealDevice,
    SimulatedClock,
    SimulatedDevice,
    publish_version,
)
from helpers.releases import container
from helpers.servers import database
from rankcast.edge.manifests import KeptManifests
from rankcast.rate_limit import Rate
from rankcast.release.store import Store
from rankcast.server.app import create_app
from rankcast.server.registry import Registry
from rankcast.server.rollouts.rollout import position
from rankcast.server.settings import ServerSettings

N_DEVICES, N_REAL, SICK_SHARE = 200, 10, 0.2
Device = SimulatedDevice | RealDevice
_OFTEN = Rate(1e9, 1e9)


class Cloud:
    """A store, a database, and any number of apps over both."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.store, self.url, self.clock = Store(root / "store"), url, SimulatedClock()
        self.apps: list[DirectApp] = []
        self.turn = 0
        registry = Registry(url)
        self.operator = registry.add("desk", "operator")
        self.tokens = {}
        for n in range(N_DEVICES):
            name = f"pi-{n:03d}"
            self.tokens[name] = registry.add(name, groups=["eu" if n % 2 else "us"])
        registry.close()
        self.kept = KeptManifests(root / "kept")
        self.manifest = publish_version(self.store, None, 0)
        self.kept.put(self.manifest)

    def start(self, n_apps: int) -> None:
        """Drop every app there is, and start others."""
        self.stop()
        settings = ServerSettings(
            database=self.url, calls=_OFTEN, files=_OFTEN, now_s=self.clock, write_looks_s=1e9
        )
        self.apps = [DirectApp(create_app(self.store, settings)) for _ in range(n_apps)]

    def stop(self) -> None:
        for app in self.apps:
            app.close()

    def publish(self) -> None:
        self.manifest = publish_version(self.store, self.manifest, self.manifest.version)
        self.kept.put(self.manifest)
        self.clock.now_s += 60.0  # a server looks every few seconds

    def next_app(self) -> DirectApp:
        self.turn += 1
        return self.apps[self.turn % len(self.apps)]

    def operate(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.operator}", "content-type": "application/json"}
        data = b"" if body is None else json.dumps(body).encode()
        status, _, answer = self.next_app().ask(method, path, headers, data)
        assert status in (200, 201), answer
        return json.loads(answer)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, f"sqlite:///{tmp_path}/devices.db")
    yield cloud
    cloud.stop()


def fleet_of(cloud: Cloud, sick: Callable[[int], bool], n_real: int = N_REAL) -> list[Device]:
    """Return devices with version 1; those that are sick fail their health check with version 2."""
    first = set(sorted(cloud.tokens, key=lambda name: position("demo:2", name))[:n_real])
    devices: list[Device] = []
    for n, (name, token) in enumerate(cloud.tokens.items()):
        of = [2] if sick(n) else []
        if name in first:
            devices.append(RealDevice(cloud.next_app, token, cloud.root / name, of))
            devices[-1].sync(cloud.manifest)
        else:
            devices.append(SimulatedDevice(cloud.next_app, token, cloud.kept, of))
    return devices


def real(devices: list[Device]) -> list[RealDevice]:
    return [device for device in devices if isinstance(device, RealDevice)]


def sick_by_number(n: int) -> bool:
    return n % round(1 / SICK_SHARE) == 0


@pytest.mark.parametrize(
    ("n_apps", "restarts", "loses_reports"),
    [(1, True, False), (2, False, False), (2, False, True)],
)
def test_a_version_that_makes_a_fifth_sick_is_halted_in_its_first_stage(
    cloud: Cloud, n_apps: int, *, restarts: bool, loses_reports: bool
) -> None:
    """Of 20 devices, 4 are sick on average, and 5 % of them is 1: the second halts the rollout.

    The stage goes back without hands, and the 180 others never have version 2. Where no report
    arrives, what devices say when they ask next does the same.
    """
    cloud.start(n_apps)
    devices = fleet_of(cloud, sick_by_number)
    order = {"adapter": "demo", "version": 2, "stages": ["10%", "50%", "100%"], "every_s": 3600.0}
    number = cloud.operate("POST", "/v1/rollouts", order)["number"]
    for device in devices[::20]:
        device.sync(cloud.manifest)
    assert {device.active for device in devices} == {1}
    waiting = cloud.operate("GET", f"/v1/rollouts/{number}")
    assert (waiting["state"], waiting["stage"], waiting["before"]) == ("waiting", 0, 1)
    cloud.publish()
    for _ in range(3 if loses_reports else 2):
        for n, device in enumerate(devices):
            device.loses_reports = loses_reports
            device.sync(cloud.manifest)
            if restarts and n % 40 == 20:
                cloud.start(n_apps)
        cloud.clock.now_s += 7200.0  # long enough for the next stage
    shown = cloud.operate("GET", f"/v1/rollouts/{number}")
    assert (shown["state"], shown["stage"]) == ("halted", 1)
    assert "2 of 20 devices failed (2 rolled-back), more than 5%" in shown["reason"]
    assert {device.active for device in devices} == {1}
    touched = [device for device in devices if 2 in device.versions]
    assert 2 <= len(touched) <= 20 == shown["stages"][0]["n_devices"]
    assert [stage["states"] for stage in shown["stages"][1:]] == [{"waiting": 80}, {"waiting": 100}]
    assert sum(shown["failures_by_group"].values()) == shown["stages"][0]["states"]["rolled-back"]
    tried = [device for device in real(devices) if 2 in device.versions]
    assert 1 <= len(tried) <= N_REAL == len(real(devices))
    for device in real(devices):
        assert device.file == container(0).to_bytes()
        assert bool(device.state.rejected) == bool(device.sick & device.versions)


def test_devices_that_fail_later_go_back_and_too_many_halt_it(cloud: Cloud) -> None:
    """Of 20 devices in the first stage 5 % is 1: the second that reports takes all of them back."""
    cloud.start(2)
    devices = fleet_of(cloud, lambda _: False)
    one, two, *_ = real(devices)
    order = {"adapter": "demo", "version": 2, "stages": ["10%", "100%"]}
    number = cloud.operate("POST", "/v1/rollouts", order)["number"]
    cloud.publish()
    for device in devices:
        device.sync(cloud.manifest)
    assert sum(device.active == 2 for device in devices) == 20
    assert {device.file for device in real(devices)} == {container(1).to_bytes()}
    one.report_unhealthy("no answer for 30 s")
    for device in devices:
        device.sync(cloud.manifest)
    assert (one.active, two.active) == (1, 2)
    assert one.file == container(0).to_bytes()
    shown = cloud.operate("GET", f"/v1/rollouts/{number}")
    assert (shown["state"], shown["stages"][0]["states"]["unhealthy"]) == ("running", 1)
    assert shown["failed"][0]["message"] == "no answer for 30 s"
    two.report_unhealthy("answers nonsense")
    for device in devices:
        device.sync(cloud.manifest)
    shown = cloud.operate("GET", f"/v1/rollouts/{number}")
    assert "2 of 20 devices failed (2 unhealthy), more than 5%" in shown["reason"]
    assert {device.active for device in devices} == {1}
    assert {device.file for device in real(devices)} == {container(0).to_bytes()}


def test_a_version_that_works_reaches_all_stage_by_stage(cloud: Cloud) -> None:
    cloud.start(2)
    devices = fleet_of(cloud, lambda _: False, n_real=0)[:30]
    order = {"adapter": "demo", "version": 2, "stages": ["10%", "50%", "100%"], "every_s": 3600.0,
             "devices": list(cloud.tokens)[:30]}  # fmt: skip
    number = cloud.operate("POST", "/v1/rollouts", order)["number"]
    cloud.publish()
    reached = []
    for _ in range(4):
        for device in devices:
            device.sync(cloud.manifest)
        reached.append(sum(device.active == 2 for device in devices))
        cloud.clock.now_s += 3600.0
    assert reached == [3, 15, 30, 30]
    assert cloud.operate("GET", f"/v1/rollouts/{number}")["state"] == "done"
    cloud.publish()  # version 3: without a rollout of its own it stays away
    for device in devices:
        device.sync(cloud.manifest)
    assert {device.active for device in devices} == {2}
    aborted = cloud.operate("POST", f"/v1/rollouts/{number}/abort", {"reason": "too slow"})
    assert aborted["reason"] == "too slow (desk)"
    for device in devices:
        device.sync(cloud.manifest)
    assert {device.active for device in devices} == {1}


def test_servers_that_share_postgresql_agree(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with database(request.getfixturevalue("postgres")) as url:
        cloud = Cloud(tmp_path, url)
        cloud.start(2)
        devices = fleet_of(cloud, sick_by_number, n_real=0)
        order = {"adapter": "demo", "version": 2, "stages": ["10%", "100%"]}
        cloud.operate("POST", "/v1/rollouts", order)
        cloud.publish()
        for _ in range(2):
            for device in devices:
                device.sync(cloud.manifest)
        (shown,) = cloud.operate("GET", "/v1/rollouts")["rollouts"]
        assert (shown["state"], shown["stage"]) == ("halted", 1)
        assert {device.active for device in devices} == {1}
        assert shown["stages"][1]["states"] == {"waiting": 180}
        cloud.stop()
