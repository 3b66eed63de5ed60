"""`rankcast serve` as a process of its own, over real sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import call
from delivery_data import FINGERPRINT, chunk, lay_out, put_release, store_with
from rankcast.delivery.store import Store
from serve_data import ask, served

pytest.importorskip("fastapi")

MEGABYTES = 24


def raw(port: int, data: bytes) -> socket.socket:
    """Send bytes as they stand and leave the connection open."""
    found = socket.create_connection(("127.0.0.1", port), timeout=30)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
    found.sendall(data)
    return found


def question() -> dict[str, Any]:
    return {"adapter": "sst2", "base_fingerprint": FINGERPRINT, "deadline_s": 1.0,
            "link": {"snr_db": 5.0, "bandwidth_hz": 5e6}}  # fmt: skip


def test_a_server_plans_resists_slow_clients_and_ends_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_with(tmp_path / "store")
    large = chunk("large", MEGABYTES * 2**20)
    sha256 = store.put(large).sha256
    database = f"sqlite:///{tmp_path}/devices.db"
    status, out, _ = call("tokens", "add", "pi-1", "--database", database, capsys=capsys)
    token = out.strip()
    assert (status, token[:3]) == (0, "rc_")
    with served(tmp_path) as (process, port, log):
        assert ask(port, "POST", "/v1/plan", question())[0] == 401
        status, body = ask(port, "POST", "/v1/plan", question(), token)
        assert (status, json.loads(body)["n_rungs"]) == (200, 3)
        lay_out(store, [put_release(store, version=2)], version=2)
        status, body = ask(port, "POST", "/v1/plan", question(), token)
        assert json.loads(body)["version"] == 2

        bearer = f"Authorization: Bearer {token}\r\n".encode()
        for path in (b"/metadata/../../devices.db", b"//etc/passwd", b"/blobs/..%2f..%2fdevices.db",
                     b"/metadata/..%00/devices.db"):  # fmt: skip
            with raw(port, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + bearer + b"\r\n") as one:
                assert one.recv(100).startswith(b"HTTP/1.1 404")

        slow = [raw(port, b"POST /v1/plan HTTP/1.1\r\nHost: x\r\n") for _ in range(50)]
        slow += [
            raw(port, b"POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
            for _ in range(50)
        ]
        began = time.monotonic()
        assert ask(port, "POST", "/v1/plan", question(), token)[0] == 200
        assert time.monotonic() - began < 5

        request = f"GET /blobs/{sha256[:2]}/{sha256} HTTP/1.1\r\nHost: x\r\n".encode()
        download = raw(port, request + bearer + b"\r\n")
        watching = raw(port, b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n" + bearer + b"\r\n")
        found = download.recv(1000)
        while b"event: plan" not in (seen := watching.recv(2000)):
            assert seen
        for connection in slow:
            connection.close()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None  # the download is under way
        while piece := download.recv(2**20):
            found += piece
        assert found.partition(b"\r\n\r\n")[2] == large
        assert process.wait(20) == 0
        lines = [json.loads(x) for x in log.read_text().splitlines() if x.startswith("{")]
        plans = [x for x in lines if x.get("route") == "/v1/plan" and x.get("status") == 200]
        assert [x["device"] for x in plans] == ["pi-1"] * 3
        assert token not in log.read_text()


def test_workers_share_a_port_and_their_numbers(tmp_path: Path) -> None:
    store_with(tmp_path / "store")
    with served(tmp_path, "--workers", "2", "--open") as (process, port, _):
        for _ in range(20):
            assert ask(port, "POST", "/v1/plan", question())[0] == 200
        text = ask(port, "GET", "/metrics")[1].decode()
        line = 'rankcast_requests_total{method="POST",route="/v1/plan",status="200"} 20.0'
        assert line in text
        assert "rankcast_active_devices 1.0" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_tokens_are_added_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = ("--database", f"sqlite:///{tmp_path}/devices.db")
    for args in (("pi-1",), ("desk", "--operator")):
        assert call("tokens", "add", *args, *database, capsys=capsys)[0] == 0
    assert call("tokens", "revoke", "pi-1", *database, capsys=capsys)[0] == 0
    _, out, _ = call("tokens", "list", "--json", *database, capsys=capsys)
    listed = {x["name"]: (x["role"], x["revoked_s"] is None) for x in json.loads(out)}
    assert listed == {"desk": ("operator", True), "pi-1": ("device", False)}
    assert "desk" in call("tokens", "list", *database, capsys=capsys)[1]
    status, _, err = call("tokens", "revoke", "pi-1", *database, capsys=capsys)
    assert (status, "No device 'pi-1' has a token" in err) == (2, True)


def test_what_cannot_be_served_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = call("serve", "--store", str(tmp_path / "none"), capsys=capsys)
    assert (status, "rankcast publish makes one" in err) == (2, True)
    Store(tmp_path).metadata.mkdir()
    inside = f"sqlite:///{tmp_path}/metadata/devices.db"
    status, _, err = call("serve", "--store", str(tmp_path), "--database", inside, capsys=capsys)
    assert (status, "whose files are for everyone" in err) == (2, True)


def test_without_the_extra_the_command_names_it(tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from rankcast.cli import main\n"
        f"main(['serve', '--store', {str(tmp_path)!r}])"
    )
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", hidden], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'rankcast[serve]'" in done.stderr
