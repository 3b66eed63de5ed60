"""`rankcast serve` as a process of its own, over real sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Call
from helpers.servers import ask, served
from helpers.stores import FINGERPRINT, chunk, lay_out, put_release, store_with
from helpers.waiting import wait_until
from rankcast.release.store import Store

pytest.importorskip("fastapi")

MEGABYTES = 24


def raw(port: int, data: bytes) -> socket.socket:
    """Send bytes as they stand and leave the connection open."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
    connection.sendall(data)
    return connection


def question() -> dict[str, Any]:
    return {"adapter": "sst2", "base_fingerprint": FINGERPRINT, "deadline_s": 1.0,
            "link": {"snr_db": 5.0, "bandwidth_hz": 5e6}}  # fmt: skip


def test_a_server_plans_resists_slow_clients_and_ends_in_order(tmp_path: Path, call: Call) -> None:
    store = store_with(tmp_path / "store")
    large = chunk("large", MEGABYTES * 2**20)
    sha256 = store.put(large).sha256
    database = f"sqlite:///{tmp_path}/devices.db"
    token = call.ok("devices", "add", "pi-1", "--database", database).strip()
    assert token.startswith("rc_")
    with served(tmp_path, "--grace-s", "600") as (server, port, log):
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
        assert ask(port, "POST", "/v1/plan", question(), token)[0] == 200

        request = f"GET /blobs/{sha256[:2]}/{sha256} HTTP/1.1\r\nHost: x\r\n".encode()
        download = raw(port, request + bearer + b"\r\n")
        watching = raw(port, b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n" + bearer + b"\r\n")
        received = download.recv(1000)
        while b"event: plan" not in (seen := watching.recv(2000)):
            assert seen
        for connection in slow:
            connection.close()
        server.process.send_signal(signal.SIGTERM)

        def is_waiting() -> bool:
            assert server.process.poll() is None  # the download is under way
            return "Waiting for connections to close" in log.read_text()

        wait_until(is_waiting)
        while piece := download.recv(2**20):
            received += piece
        assert received.partition(b"\r\n\r\n")[2] == large
        assert server.wait() == 0
        lines = [json.loads(x) for x in log.read_text().splitlines() if x.startswith("{")]
        plans = [x for x in lines if x.get("route") == "/v1/plan" and x.get("status") == 200]
        assert [x["device"] for x in plans] == ["pi-1"] * 3
        assert token not in log.read_text()


def test_workers_share_a_port_and_their_numbers(tmp_path: Path) -> None:
    store_with(tmp_path / "store")
    with served(tmp_path, "--workers", "2", "--no-auth") as (server, port, _):
        for _ in range(20):
            assert ask(port, "POST", "/v1/plan", question())[0] == 200
        text = ask(port, "GET", "/metrics")[1].decode()
        line = 'rankcast_requests_total{method="POST",route="/v1/plan",status="200"} 20.0'
        assert line in text
        assert "rankcast_active_devices 1.0" in text
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_devices_are_added_listed_and_revoked(tmp_path: Path, call: Call) -> None:
    database = ("--database", f"sqlite:///{tmp_path}/devices.db")
    for args in (("pi-1",), ("desk", "--operator")):
        call.ok("devices", "add", *args, *database)
    call.ok("devices", "revoke", "pi-1", *database)
    out = call.ok("devices", "list", "--json", *database)
    listed = {x["name"]: (x["role"], x["revoked_s"] is None) for x in json.loads(out)}
    assert listed == {"desk": ("operator", True), "pi-1": ("device", False)}
    assert "desk" in call.ok("devices", "list", *database)
    assert "No device 'pi-1' has a token" in call.refused("devices", "revoke", "pi-1", *database)


def test_what_cannot_be_served_is_refused_in_words(tmp_path: Path, call: Call) -> None:
    assert "rankcast publish makes one" in call.refused("serve", "--store", str(tmp_path / "none"))
    Store(tmp_path).metadata.mkdir()
    inside = f"sqlite:///{tmp_path}/metadata/devices.db"
    err = call.refused("serve", "--store", str(tmp_path), "--database", inside)
    assert "whose files are for everyone" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, database = str(taken.getsockname()[1]), f"sqlite:///{tmp_path.parent}/other.db"
        args = ("--store", str(tmp_path), "--database", database, "--port", port)
        err = call.refused("serve", *args)
    assert f"Nobody can listen at 127.0.0.1, port {port}" in err


def test_without_the_extra_the_command_names_it(tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from rankcast.cli.main import main\n"
        f"main(['serve', '--store', {str(tmp_path)!r}])"
    )
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", hidden], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'rankcast[serve]'" in done.stderr
