"""A broker of MQTT for tests: mosquitto with a configuration of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from system_programs import needs


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def mosquitto(folder: Path, port: int, *more: str) -> Iterator[None]:
    """Run a broker; it listens before this yields.

    Args:
        folder: for its configuration.
        port: to listen at.
        more: lines of its configuration; by default everyone may do everything.
    """
    program = needs("mosquitto")
    config = folder / f"mosquitto-{port}.conf"
    lines = (f"listener {port} 127.0.0.1", "persistence false", "log_dest stderr",
             *(more or ("allow_anonymous true",)))  # fmt: skip
    user = ("user root",) if os.name == "posix" and os.geteuid() == 0 else ()
    config.write_text("\n".join((*user, *lines)) + "\n")
    process = subprocess.Popen(  # noqa: S603 - our own words, no shell
        [program, "-c", str(config)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "running" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield
    finally:
        process.kill()
        process.communicate()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
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
    public.write_bytes(made.public_bytes(pem))
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return public, private
