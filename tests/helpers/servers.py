"""Servers as processes of their own: `rankcast serve`, nginx, mosquitto and PostgreSQL."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from helpers.programs import certificate, free_port, lacks, needs
from helpers.waiting import DEADLOCK_S, in_background, wait_until
from rankcast.simulation.cloud import ServerProcess

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@contextmanager
def program(command: list[str], log: Path, ready: str) -> Iterator[None]:
    """Run a program; it has written that it is ready before this yields."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)  # noqa: S603 our own words, no shell
    try:
        wait_until(lambda: ready in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait()


class Files(SimpleHTTPRequestHandler):
    """Hands out the files of a folder, without a log."""

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def files_over_http(folder: Path, handler: type[Files] = Files) -> Iterator[str]:
    """Yield the address at which a folder is handed out, as by any web server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    with in_background(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def served(root: Path, *options: str) -> Iterator[tuple[ServerProcess, int, Path]]:
    """Yield a server, its port and its log."""
    log, database = root / "log", f"sqlite:///{root}/devices.db"
    store = ["--store", str(root / "store"), "--port", "0", "--database", database]
    server = ServerProcess([*store, *options], log)
    try:
        yield server, server.port, log
    finally:
        server.kill()


def ask(
    port: int, method: str, path: str, body: Any = None, token: str | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


_NGINX = """
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log stderr notice;
{user}
events {{ worker_connections 2048; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


@contextmanager
def nginx(
    folder: Path,
    name: str,
    store: Path,
    upstream_port: int = 0,
    *,
    workers: int = 1,
    changes: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run nginx with a configuration of docs/deploy and yield its port, with TLS for 127.0.0.1.

    Args:
        folder: new, for its files; the certificate is `cert.pem`.
        name: of the configuration.
        store: that it hands out.
        upstream_port: of rankcast serve.
        workers: processes.
        changes: further text of the configuration to replace.
    """
    command, port = needs("nginx"), free_port()
    folder.mkdir()
    public, private = certificate(folder)
    text = (DEPLOY / name).read_text("utf-8")
    replaced = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/rankcast/fullchain.pem": str(public),
        "/etc/ssl/rankcast/key.pem": str(private),
        "/srv/rankcast/store": str(store),
        "/var/cache/nginx/rankcast": str(folder / "cache"),
        "127.0.0.1:8080": f"127.0.0.1:{upstream_port}",
        **(changes or {}),
    }
    for old, new in replaced.items():
        text = text.replace(old, new)
    (folder / "site.conf").write_text(text)
    user = "user root;" if IS_ROOT else ""
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, user=user, workers=workers))
    start = [command, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with program(start, folder / "error.log", "start worker process "):
        yield port


@contextmanager
def mosquitto(folder: Path, port: int, *more: str) -> Iterator[None]:
    """Run a broker; it listens before this yields.

    Args:
        folder: for its configuration.
        port: to listen at.
        more: lines of its configuration; by default everyone may do everything.
    """
    command = needs("mosquitto")
    config = folder / f"mosquitto-{port}.conf"
    lines = (f"listener {port} 127.0.0.1", "persistence false", "log_dest stderr",
             *(more or ("allow_anonymous true",)))  # fmt: skip
    user = ("user root",) if IS_ROOT else ()
    config.write_text("\n".join((*user, *lines)) + "\n")
    with program([command, "-c", str(config)], config.with_suffix(".log"), "running"):
        yield


GIVEN = os.environ.get("RANKCAST_POSTGRES")
"""postgresql://USER:PASSWORD@HOST/NAME of a server where these tests may make databases."""
_CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=50")


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of a server that ends afterwards; skip where none can be started."""
    if GIVEN is not None:
        yield GIVEN
        return
    initdb, pg_ctl, user = needs("initdb"), needs("pg_ctl"), _user()
    folder = Path(tempfile.mkdtemp(prefix="rankcast-postgres-"))
    shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    options = (f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} "
               + " ".join(f"-c {setting}" for setting in _CARELESS))  # fmt: skip
    start = [pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w",
             "-t", f"{DEADLOCK_S:.0f}", "start"]  # fmt: skip
    try:
        _run_as(user, [initdb, "-D", str(data), "-A", "trust", "-U", "tester", "-N", "-E", "UTF8"])
        _run_as(user, start)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            _run_as(user, [pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server: str) -> Iterator[str]:
    """Yield the address of a new database, which is dropped afterwards."""
    psycopg = pytest.importorskip("psycopg")
    name = f"rankcast_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _user() -> str:
    """Return who may run it: never root, which PostgreSQL refuses."""
    import pwd

    if not IS_ROOT:
        return pwd.getpwuid(os.geteuid()).pw_name
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    lacks("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    raise AssertionError


def _run_as(user: str, command: list[str]) -> None:
    """Run a command as a user, in a folder that the user may enter."""
    import pwd

    other = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        command, check=False, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        **(other if IS_ROOT else {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
