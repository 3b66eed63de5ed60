from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import servers


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the address of a PostgreSQL server; skip where none can be started."""
    with servers.postgres() as address:
        yield address
