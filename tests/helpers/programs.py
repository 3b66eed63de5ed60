"""Programs that a machine has or lacks, and what servers need: ports, and a certificate.

A test that needs a program skips without it, or fails where all should be.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import IO

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

REQUIRED = "RANKCAST_REQUIRE_SYSTEM_PACKAGES"
"""Set by those who installed the packages: then a lacking program is a failure."""
PACKAGES = {
    "chromium": "chromium",
    "initdb": "postgresql",
    "ip": "iproute2",
    "iptables": "iptables",
    "mosquitto": "mosquitto",
    "mosquitto_passwd": "mosquitto",
    "nginx": "nginx-light",
    "pg_ctl": "postgresql",
    "tc": "iproute2",
    "wrk": "wrk",
}
"""Debian's package of each program."""


def find(name: str) -> str | None:
    """Return where a program lies, also where only root looks and where Debian keeps PostgreSQL."""
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places = [
        os.environ.get("PATH", ""),
        "/usr/local/sbin",
        "/usr/sbin",
        "/sbin",
        *map(str, servers),
    ]
    return shutil.which(name, path=os.pathsep.join(places))


def needs(name: str) -> str:
    """Return where a program lies; skip the test, or fail, if there is none."""
    path = find(name)
    if path is None:
        lacks(f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})")
    assert path is not None
    return path


def lacks(reason: str) -> None:
    """Skip the test for a reason that lies in the machine; fail where it is said to be complete."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set")
    pytest.skip(reason)


PORTS = range(20_000, 30_000)
"""Below those that the kernel hands out by itself."""
_reserved: list[IO[bytes]] = []


def free_port() -> int:
    """Return a port at which nobody listens, and which no other test gets while this process lives.

    So a server that was stopped can come back where it was.
    """
    import fcntl

    folder = Path(tempfile.gettempdir()) / "rankcast-test-ports"
    folder.mkdir(exist_ok=True)
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            file = stack.enter_context((folder / str(port)).open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("127.0.0.1", port)).close()
            stack.pop_all()
            _reserved.append(file)
            return port
    raise AssertionError("every port is taken")


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    pem = serialization.Encoding.PEM
    public.write_bytes(signed.public_bytes(pem))
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return public, private
