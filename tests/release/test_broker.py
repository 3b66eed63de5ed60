"""Messages about releases through a real broker, and without one."""

from __future__ import annotations

import json
import queue
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("paho.mqtt")

from helpers.commands import Call
from helpers.edge import active_file, client_of, release_of, serving
from helpers.programs import certificate, free_port, needs
from helpers.releases import container
from helpers.servers import mosquitto
from helpers.waiting import DEADLOCK_S
from rankcast.cli.edge import EdgeWatch
from rankcast.edge.install import SyncResult
from rankcast.errors import UnavailableError
from rankcast.release.notify import Broker, ReleaseListener, notify

tell = partial(notify, timeout_s=DEADLOCK_S)


def command(folder: Path, **changes: Any) -> EdgeWatch:
    return EdgeWatch(**{"server": "http://unused", "adapter": "demo", "folder": folder} | changes)


class Messages:
    """Words as they come."""

    def __init__(self) -> None:
        self.words: queue.Queue[str] = queue.Queue()

    def wait_for(self, part: str) -> None:
        while part not in self.words.get(timeout=DEADLOCK_S):
            pass


def test_word_reaches_who_listens_and_who_comes_later(tmp_path: Path) -> None:
    broker = Broker("127.0.0.1", free_port())
    with mosquitto(tmp_path, broker.port), ReleaseListener(broker, "demo", print) as listener:
        tell(broker, "other", 1)
        tell(broker, "demo", 1)
        assert listener._news.wait(DEADLOCK_S)
        assert (listener.has_news(), listener.has_news()) == (True, False)
        with ReleaseListener(broker, "demo", print) as late:
            assert late._news.wait(DEADLOCK_S)


def test_a_broker_that_goes_is_told_once_and_listened_to_when_it_is_back(tmp_path: Path) -> None:
    broker, messages = Broker("127.0.0.1", free_port()), Messages()
    with ReleaseListener(broker, "demo", messages.words.put, (1, 1)) as listener:
        messages.wait_for("is away (")
        for version in (1, 2):
            with mosquitto(tmp_path, broker.port):
                messages.wait_for("is back")
                tell(broker, "demo", version)
                assert listener._news.wait(DEADLOCK_S)
                assert listener.has_news()
            messages.wait_for("is away (")
    assert messages.words.empty()


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
        with ReleaseListener(right, "demo", print) as listener:
            tell(right, "demo", 1)
            assert listener._news.wait(DEADLOCK_S)
        for url in ("mqtts://pi:wrong@127.0.0.1", "mqtts://127.0.0.1"):
            with pytest.raises(UnavailableError, match=r"uthori[sz]ed") as refused:
                notify(Broker.of(f"{url}:{port}", {}), "demo", 1)
            assert "wrong" not in str(refused.value)


def watching(
    folder: Path, server: Any, **changes: Any
) -> tuple[threading.Thread, Messages, Callable[[], None]]:
    """Return a thread that watches, what it tells, and what ends it."""
    messages, stop = Messages(), threading.Event()
    client = client_of(server, folder)

    def show(result: SyncResult) -> None:
        messages.words.put(result.outcome)

    def run() -> None:
        command(folder, **changes).watch(client, stop.is_set, show)

    thread = threading.Thread(target=run)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return thread, messages, end


def test_word_wakes_a_device_long_before_it_would_look(tmp_path: Path) -> None:
    broker = Broker("127.0.0.1", free_port())
    quick = {"every_s": 1e6, "mqtt_delay_s": 0.0, "mqtt_jitter_s": 0.0, "mqtt": str(broker)}
    with mosquitto(tmp_path, broker.port), serving(tmp_path) as server:
        server.publish(release_of(1))
        _, messages, end = watching(tmp_path, server, **quick)
        try:
            messages.wait_for("activated")
            server.publish(release_of(2), version=2)
            tell(broker, "demo", 2)
            messages.wait_for("activated")
            assert active_file(tmp_path) == release_of(2).to_bytes()
        finally:
            end()


def test_without_a_broker_a_device_looks_and_says_so(tmp_path: Path, capfd: Any) -> None:
    with serving(tmp_path) as server:
        server.publish(release_of(1))
        broker = f"mqtt://127.0.0.1:{free_port()}"
        _, messages, end = watching(tmp_path, server, every_s=0.01, mqtt=broker)
        try:
            messages.wait_for("activated")
            server.publish(release_of(2), version=2)
            messages.wait_for("activated")
        finally:
            end()
    assert f"{broker} is away (" in capfd.readouterr().err


def test_publishing_tells_the_broker_and_stands_without_it(tmp_path: Path, call: Call) -> None:
    keys, store = ["--keys", str(tmp_path / "keys")], ["--store", str(tmp_path / "store")]
    call.ok("keys", "init", *keys, *store)
    (tmp_path / "demo.rcast").write_bytes(container().to_bytes())
    broker = Broker("127.0.0.1", free_port())
    args = ["publish", str(tmp_path / "demo.rcast"), "--name", "demo", *keys, *store, "--json"]
    status, out, err = call(*args, "--mqtt", str(broker))
    assert (status, json.loads(out)["broker_told"]) == (0, False)
    assert f"{broker} did not take the message" in err
    with mosquitto(tmp_path, broker.port):
        status, out, err = call(*args, "--mqtt", str(broker))
        assert (status, json.loads(out)["broker_told"], err) == (0, True, "")
        with ReleaseListener(broker, "demo", print) as listener:
            assert listener._news.wait(DEADLOCK_S)
    assert "--mqtt takes mqtt://" in call.refused(*args, "--mqtt", "nowhere")


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

    with patch.object(EdgeWatch, "_news", lambda self: nullcontext(lambda: True)):
        wanted.watch(client, lambda: len(slept) > 50, print, sleep)
    return [sum(pause) for pause in slept[:50]]
