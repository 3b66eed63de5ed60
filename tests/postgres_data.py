"""PostgreSQL for tests: a cluster for each process of the suite, a database for each test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from broker_data import free_port
from system_programs import lacks, needs

GIVEN = os.environ.get("RANKCAST_POSTGRES")
"""postgresql://USER:PASSWORD@HOST/NAME of a server where these tests may make databases."""
_CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=50")


@contextmanager
def cluster() -> Iterator[str]:
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
    start = [pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start"]
    try:
        _run(user, [initdb, "-D", str(data), "-A", "trust", "-U", "tester", "-N", "-E", "UTF8"])
        _run(user, start)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            _run(user, [pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop"])
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
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    lacks("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    raise AssertionError


def _run(user: str, command: list[str]) -> None:
    """Run a command as a user, in a folder that the user may enter."""
    other = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        command, check=False, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        **(other if os.geteuid() == 0 else {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
