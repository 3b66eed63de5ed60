"""The names that `import rankcast` offers: there, typed, and loaded late."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rankcast
from helpers.commands import fresh_python

PUBLIC = [name for name in rankcast.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(rankcast, name)
    assert value.__doc__
    assert getattr(rankcast, name) is value
    assert name in dir(rankcast)
    assert f"`{name}" in (rankcast.__doc__ or "")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'packk'"):
        _ = rankcast.packk  # pyright: ignore[reportAttributeAccessIssue]


def test_type_checkers_see_what_is_loaded_late() -> None:
    tree = ast.parse(Path(rankcast.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == rankcast._HOMES
    assert sorted(seen) == sorted(PUBLIC)


def test_the_import_itself_loads_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import rankcast\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    assert fresh_python(script).stdout.strip() == "['rankcast']"
