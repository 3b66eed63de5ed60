"""Call the command line as a person would, inside the test's process."""

from __future__ import annotations

from typing import Any

import pytest

from rankcast.cli import main


def call(*args: str, capsys: Any) -> tuple[int, str, str]:
    """Return exit status, standard output and standard error."""
    with pytest.raises(SystemExit) as stopped:
        main(args)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err
