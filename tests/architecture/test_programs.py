from __future__ import annotations

import pytest

from helpers import programs
from helpers.programs import REQUIRED, needs


def test_a_lacking_program_skips_and_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find", lambda name: None)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"nginx is not installed.*nginx-light"):
        needs("nginx")


def test_a_lacking_program_fails_where_all_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find", lambda name: None)
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=r"postgresql.*is set"):
        needs("initdb")
