from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import servers


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the address of a PostgreSQL server; skip where none can be started."""
    with servers.postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the address of an empty database, of each kind that a server can have."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/devices.db"
        return
    with servers.database(request.getfixturevalue("postgres")) as url:
        yield url
