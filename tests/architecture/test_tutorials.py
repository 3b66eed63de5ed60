"""Tutorials, as a reader follows them: every numbered step in an empty folder."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import socket
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from helpers.programs import free_port
from helpers.tutorials import (
    TUTORIALS,
    Commands,
    blocks_of,
    check_output,
    follow,
    run_notebook,
)

ROOT = Path(__file__).parents[2]


def test_a_peft_adapter_changes_answers_of_a_running_program(tmp_path: Path) -> None:
    page, port = (TUTORIALS / "peft-adapter.md").read_text("utf-8"), free_port()
    assert page.count("STORE_PORT=8080") == 1
    ran = follow(page.replace("STORE_PORT=8080", f"STORE_PORT={port}"), tmp_path)
    check_output(ran, least=7)
    said = [re.findall(r"process (\d+) says (\w+)", "\n".join(block.printed)) for block in ran]
    answers = max(said, key=len)
    assert [answer for _, answer in answers] == ["yes", "no", "yes"]
    assert len({process for process, _ in answers}) == 1
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_version_reaches_a_fleet_in_stages(tmp_path: Path) -> None:
    """Five devices in the place of a hundred: stages of 1, 1 and 3."""
    page, port = (TUTORIALS / "fleet.md").read_text("utf-8"), free_port()
    assert page.count("PIS=100\n") == 1
    ran = follow(page.replace("PIS=100\n", "PIS=5\n").replace("8080", str(port)), tmp_path)
    check_output(ran, least=9)
    lines = "\n".join(line for block in ran for line in block.printed)
    assert re.findall(r"^version (\d): (\d) of 5 Pis$", lines, re.MULTILINE) == [
        ("1", "5"), ("1", "5"), ("1", "4"), ("3", "1"), ("1", "3"), ("3", "2"), ("3", "5"),
        ("1", "4"), ("3", "1"),
    ]  # fmt: skip
    assert re.findall(r"puts version (\d) back", lines) == ["1"]
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_table_4_has_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = (TUTORIALS / "table-4.md").read_text("utf-8")
    for command in ("report table4", "run table4 --quick"):
        assert page.count(f"python3 dev.py study {command}") >= 1
    here = f"--work {shlex.quote(str(tmp_path / 'work'))}"  # the checkout's own stays as it is
    page = page.replace(
        "python3 dev.py study report table4", f"python -m studies report table4 {here}"
    )
    page = page.replace("python3 dev.py study run table4", f"python -m studies run table4 {here}")
    check_output(follow(page, tmp_path), least=2)


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return what makes the notebooks of the site."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "tools"))
    return importlib.import_module("notebooks")


def test_an_allocator_of_ones_own_gets_a_verdict(
    notebooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells of the notebook are the steps of the page."""
    page = (TUTORIALS / "allocator.md").read_text("utf-8")
    page = page.replace("python3 dev.py study", "python -m studies")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # what dev.py runs, without setting up anything
    monkeypatch.chdir(tmp_path)
    ran = run_notebook(notebooks.notebook_of(page), ModuleType("notebook"))
    check_output(ran, least=3)
    assert (tmp_path / "runs/studies/quick/late_layers/result.json").exists()
    steps = [b.text if isinstance(b, Commands) else b[1] for b in blocks_of(page)]
    cells = [block.commands.text.partition("\n")[2] for block in ran]
    assert cells == [step.rstrip("\n") for step in steps]


def test_a_ladder_is_drawn(
    notebooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt

    page = (TUTORIALS / "ladder.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    names = ModuleType("notebook")
    try:
        check_output(run_notebook(notebooks.notebook_of(page), names), least=2)
        curves = [line.get_xydata() for line in plt.gca().get_lines()]
    finally:
        plt.close("all")
    assert len(curves) == 3
    for curve in curves:
        assert len(curve) > 2
        assert (np.diff(curve[:, 0]) > 0).all()
        assert curve[-1, 1] == curve[:, 1].min()
        assert curve[-1, 1] < 1.0
    whole = [curve[-1, 1] for curve in curves]
    assert whole == sorted(whole, reverse=True)  # small, good, fine


def test_a_notebook_has_every_word_of_its_page_once(notebooks: ModuleType) -> None:
    """Text, code and order are the page's; only fences around code and links are left out."""
    for name in notebooks.NOTEBOOKS:
        page = (TUTORIALS.parent / name).read_text("utf-8")
        notebook = json.loads(notebooks.notebook_of(page))
        assert notebook["nbformat"] == 4
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
        plain = re.sub(r"^%%.*$|^```\w*$", "", text, flags=re.MULTILINE).split()
        linked = re.sub(r"\[([^\[\]]+)\]\((?!https?:)\S+?\)", r"\1", page)
        assert plain == re.sub(r"^```\w*$", "", linked, flags=re.MULTILINE).split()


def test_what_is_a_cell_of_code(notebooks: ModuleType) -> None:
    page = """# Title

```sh
pip install
```

## 1. Do

Save this as `a/b.py`:

```python
x = 1
```

```sh
ls
```

```text
a
```

```python
y = 2
```

## Later

```python
z = 3
```
"""
    cells = json.loads(notebooks.notebook_of(page))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == ["%%writefile a/b.py\nx = 1", "%%bash\nls", "y = 2"]
    kinds = [cell["cell_type"] for cell in cells]
    assert kinds == ["markdown", "code", "code", "markdown", "code", "markdown"]
