from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.edge import EdgeServer, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EdgeServer]:
    """Run a small delivery server with faults to order."""
    with serving(tmp_path) as running:
        yield running
