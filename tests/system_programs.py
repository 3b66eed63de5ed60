"""Programs that a machine has or lacks: tests that need one skip, or fail where all should be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

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
    found = find(name)
    if found is None:
        lacks(f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})")
    assert found is not None
    return found


def lacks(reason: str) -> None:
    """Skip the test for a reason that lies in the machine; fail where it is said to be complete."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set")
    pytest.skip(reason)
