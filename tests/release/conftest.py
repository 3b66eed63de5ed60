from __future__ import annotations

from pathlib import Path

import pytest

from helpers.releases import Publisher, new_publisher


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """Return a store with keys and no release."""
    return new_publisher(tmp_path)
