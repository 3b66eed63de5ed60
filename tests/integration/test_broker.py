"""Word of releases through a real broker, and without one."""

from __future__ import annotations

import json
import queue
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("paho.mqtt")

from broker_data import certificate, free_port, mosquitto
from command_line import call
from edge_data import client_of, in_force, release_of, serving
from rankcast.delivery.edge.syncing import SyncResult
from rankcast.delivery.notices import Bell, Broker, notify
from rankcast.errors import UnavailableError
from rankcast.run.edge_options import EdgeWatch
from rankcast.run.watching import watch
from release_data import container
from system_programs import needs

PATIENCE_S = 30


def command(folder: Path, **changes: Any) -> EdgeWatch:
    return EdgeWatch(**{"server": "http://unused", "adapter": "demo", "folder": folder} | changes)


class Told:
    """Words as they come."""

    def __init__(self) -> None:
        self.words: queue.Queue[str] = queue.Queue()

    def wait_for(self, part: str) -> None:
        while part not in self.words.get(timeout=PATIENCE_S):
            pass


def test_word_reaches_who_listens_and_who_comes_later(tmp_path: Path) -> None:
    broker = Broker("127.0.0.1", free_port())
    with mosquitto(tmp_path, broker.port), Bell(broker, "demo", print) as bell:
        notify(broker, "other", 1)
        notify(broker, "demo", 1)
        assert bell._rung.wait(PATIENCE_S)
        assert (bell.rang(), bell.rang()) == (True, False)
        with Bell(broker, "demo", print) as late:
            assert late._rung.wait(PATIENCE_S)


def test_a_broker_that_goes_is_told_once_and_listened_to_when_it_is_back(tmp_path: Path) -> None:
    broker, told = Broker("127.0.0.1", free_port()), Told()
    with Bell(broker, "demo", told.words.put, (1, 1)) as bell:
        told.wait_for("is away (")
        for version in (1, 2):
            with mosquitto(tmp_path, broker.port):
                told.wait_for("is back")
                notify(broker, "demo", version)
                assert bell._rung.wait(PATIENCE_S)
                assert bell.rang()
            told.wait_for("is away (")
    assert told.words.empty()


def test_tls_checks_the_broker_and_the_broker_checks_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mosquitto")
    public, private = certificate(tmp_path)
    passwords = tmp_path / "passwords"
    subprocess.run(  # noqa: S603 - our own words, no shell
        [needs("mosquitto_passwd"), "-b", "-c", str(passwords), "pi", "secret"], check=True
    )
    lines = (f"certfile {public}", f"keyfile {private}", f"password_file {passwords}")
    port = free_port()
    with mosquitto(tmp_path, port, *lines, "allow_anonymous false"):
        right = Broker.of(f"mqtts://pi:secret@127.0.0.1:{port}", {})
        with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            notify(right, "demo", 1)
        monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(public))
        with Bell(right, "demo", print) as bell:
            notify(right, "demo", 1)
            assert bell._rung.wait(PATIENCE_S)
        for url in ("mqtts://pi:wrong@127.0.0.1", "mqtts://127.0.0.1"):
            with pytest.raises(UnavailableError, match=r"uthori[sz]ed") as refused:
                notify(Broker.of(f"{url}:{port}", {}), "demo", 1)
            assert "wrong" not in str(refused.value)


def watching(
    folder: Path, server: Any, **changes: Any
) -> tuple[threading.Thread, Told, Callable[[], None]]:
    """Return a thread that watches, what it tells, and what ends it."""
    told, stop = Told(), threading.Event()
    client = client_of(server, folder)

    def say(result: SyncResult) -> None:
        told.words.put(result.outcome)

    def run() -> None:
        watch(command(folder, **changes), client, stop.is_set, say=say)

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return thread, told, end


def test_word_wakes_a_device_long_before_it_would_look(tmp_path: Path) -> None:
    broker = Broker("127.0.0.1", free_port())
    quick = {"every_s": 1e6, "mqtt_delay_s": 0.0, "mqtt_jitter_s": 0.0, "mqtt": str(broker)}
    with mosquitto(tmp_path, broker.port), serving(tmp_path) as server:
        server.publish(release_of(1))
        _, told, end = watching(tmp_path, server, **quick)
        try:
            told.wait_for("activated")
            server.publish(release_of(2), version=2)
            notify(broker, "demo", 2)
            told.wait_for("activated")
            assert in_force(tmp_path) == release_of(2).to_bytes()
        finally:
            end()


def test_without_a_broker_a_device_looks_and_says_so(tmp_path: Path, capfd: Any) -> None:
    with serving(tmp_path) as server:
        server.publish(release_of(1))
        broker = f"mqtt://127.0.0.1:{free_port()}"
        _, told, end = watching(tmp_path, server, every_s=0.01, mqtt=broker)
        try:
            told.wait_for("activated")
            server.publish(release_of(2), version=2)
            told.wait_for("activated")
        finally:
            end()
    assert f"{broker} is away (" in capfd.readouterr().err


def test_publishing_tells_the_broker_and_stands_without_it(tmp_path: Path, capsys: Any) -> None:
    keys, store = ["--keys", str(tmp_path / "keys")], ["--store", str(tmp_path / "store")]
    assert call("keys", "init", *keys, *store, capsys=capsys)[0] == 0
    (tmp_path / "demo.rcast").write_bytes(container().to_bytes())
    broker = Broker("127.0.0.1", free_port())
    args = ["publish", str(tmp_path / "demo.rcast"), "--name", "demo", *keys, *store, "--json"]
    status, out, err = call(*args, "--mqtt", str(broker), capsys=capsys)
    assert (status, json.loads(out)["broker_told"]) == (0, False)
    assert f"{broker} did not take word" in err
    with mosquitto(tmp_path, broker.port):
        status, out, err = call(*args, "--mqtt", str(broker), capsys=capsys)
        assert (status, json.loads(out)["broker_told"], err) == (0, True, "")
        with Bell(broker, "demo", print) as bell:
            assert bell._rung.wait(PATIENCE_S)
    status, _, err = call(*args, "--mqtt", "nowhere", capsys=capsys)
    assert (status, "--mqtt takes mqtt://" in err) == (2, True)


def test_a_storm_of_messages_is_one_sync_each_time_and_chance_spreads_it(tmp_path: Path) -> None:
    slept: list[list[float]] = []

    class Client:
        def sync(self) -> SyncResult:
            slept.append([])
            return SyncResult("up-to-date", None, "device", 0, 0.0, None, "")

    wanted = command(tmp_path, every_s=1e5)
    pauses = _pauses(wanted, Client(), slept)
    assert all(wanted.mqtt_delay_s <= p <= wanted.mqtt_delay_s + wanted.mqtt_jitter_s + 0.01
               for p in pauses)  # fmt: skip
    assert max(pauses) - min(pauses) > wanted.mqtt_jitter_s / 2


def _pauses(wanted: EdgeWatch, client: Any, slept: list[list[float]]) -> list[float]:
    def sleep(seconds: float) -> None:
        slept[-1].append(seconds)

    with patch("rankcast.run.watching._bell", lambda command, stack: lambda: True):
        watch(wanted, client, lambda: len(slept) > 50, sleep, say=print)
    return [sum(pause) for pause in slept[:50]]
