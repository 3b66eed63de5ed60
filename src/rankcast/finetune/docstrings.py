"""A data set that is on every machine: the standard library's docstrings, by package."""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rankcast.errors import DataError
from rankcast.finetune.texts import DatasetSplits, TextDataset

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
"""The classes; packages that every supported version of Python has."""

MIN_WORDS = 5
SHARES = (0.8, 0.1, 0.1)


def load_docstrings(seed: int = 0) -> DatasetSplits:
    """Return paragraphs of the standard library's docstrings, labelled by package.

    About 3,100 texts in 8 classes; the exact number depends on the version of Python. The sources
    are parsed, not imported. No text occurs twice, so none is in two splits.

    Raises:
        DataError: the sources of the standard library are not installed.
    """
    train, validation, test = _paragraphs().split(SHARES, seed)
    return DatasetSplits(train, validation, test)


@lru_cache(maxsize=1)
def _paragraphs() -> TextDataset:
    """Read every paragraph once, in the order of packages, files and lines."""
    root = Path(sysconfig.get_path("stdlib"))
    owner: dict[str, tuple[str, int | None]] = {}
    for label, package in enumerate(PACKAGES):
        for text in _package_paragraphs(root, package):
            key = text.casefold()
            known = owner.setdefault(key, (text, label))
            if known[1] != label:  # said in two packages: it belongs to neither
                owner[key] = (text, None)
    kept = [(text, label) for text, label in owner.values() if label is not None]
    missing = [name for i, name in enumerate(PACKAGES) if not any(label == i for _, label in kept)]
    if missing:
        raise DataError(
            f"No docstrings of {', '.join(missing)} under {root}: this Python was installed "
            f"without the sources of its standard library. Give a data set of your own."
        )
    return TextDataset(tuple(t for t, _ in kept), tuple(label for _, label in kept), PACKAGES)


def _package_paragraphs(root: Path, package: str) -> Iterator[str]:
    """Yield the paragraphs of one package with their white space collapsed."""
    files = ((file.relative_to(root).as_posix(), file) for file in (root / package).rglob("*.py"))
    for name, file in sorted(files):
        if {"test", "tests"}.isdisjoint(name.split("/")):
            for docstring in _docstrings(file):
                for paragraph in re.split(r"\n\s*\n", docstring):
                    if len(re.findall(r"[^\W\d_]+", paragraph)) >= MIN_WORDS:
                        yield " ".join(paragraph.split())


def _docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions, in the order of the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    for node in sorted(nodes, key=lambda n: getattr(n, "lineno", 0)):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
