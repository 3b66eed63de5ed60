"""Docstrings of pinned packages as prompts and answers.

The prompt is where a docstring stands: module, class and signature. The answer is its first
paragraph. The sources are parsed, not imported, and read in an order that does not depend on where
they are installed. A paragraph is kept once, whatever names stand in it, because libraries inherit
and copy docstrings. Nothing of one side of the split is known from another: a module lies on one
side, and a text that has `SHINGLE` words in a row with a text of another side is left out.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankcast.errors import DataError

PACKAGES = (
    "numpy", "scipy", "sympy", "networkx", "pandas", "matplotlib", "sqlalchemy", "hypothesis",
    "huggingface_hub", "accelerate", "peft", "datasets", "diffusers", "torch", "transformers",
)  # fmt: skip
"""Read by default: each is installed for the tests, at the version that `constraints.txt` pins."""
FEWEST_WORDS, MOST_WORDS = 8, 64
LONGEST_SIGNATURE = 200
"""Characters; longer ones are mostly defaults."""
SHINGLE = 8
MOST_OF_MODULE = 8
"""Texts of one module that are tuned or judged on at most, so that many modules are."""
_QUOTES = '"""'
_NO_PROSE = (">>>", "Args:", "Returns:", "Parameters:", "*optional*", ":param", "----")
"""Marks of lists of parameters, which stand in a first paragraph where no line is empty."""
_NAME = re.compile(r"`+[^`]*`+|:\w+:|\b\w*[a-z]\w*[A-Z]\w*\b|\b\w+[._]\w[\w.]*\b|\b[A-Z]{2,}\w*\b")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Docstring:
    """A docstring and where it stands.

    Attributes:
        module: dotted name of the module.
        prompt: module, class and signature, up to the quotes.
        answer: its first paragraph, in one line.
    """

    module: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class DocstringSplits:
    """Docstrings to learn from, to tune on and to judge on.

    Attributes:
        train: in the order of the sources.
        tuning: on which settings are chosen.
        judged: those of a module follow one another.
    """

    train: tuple[Docstring, ...]
    tuning: tuple[Docstring, ...]
    judged: tuple[Docstring, ...]


def harvest(packages: Sequence[str] = PACKAGES) -> list[Docstring]:
    """Return the docstrings of public classes and functions, each paragraph once.

    Raises:
        DataError: a package is not installed.
    """
    found, known = [], set()
    for package in packages:
        for one in _of_package(package):
            keys = {normalised(one.answer), normalised(first_sentence(one.answer))}
            if known.isdisjoint(keys):
                found.append(one)
            known |= keys
    return found


def _of_package(package: str) -> Iterator[Docstring]:
    """Yield the docstrings of a package in the order of its modules and lines."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"The docstrings of {package} are not here: install what the tests need "
            f"(python3 dev.py test does), at the versions of constraints.txt."
        )
    root = Path(spec.origin).parent
    files = ((file.relative_to(root).with_suffix("").parts, file) for file in root.rglob("*.py"))
    for parts, file in sorted(files):
        if {"test", "tests", "testing"}.isdisjoint(parts):
            named = parts[:-1] if parts[-1] == "__init__" else parts
            yield from of_source(".".join((package, *named)), file)


def of_source(module: str, file: Path) -> Iterator[Docstring]:
    """Yield the docstrings of one file; none where it is not this Python."""
    source = file.read_text(encoding="utf-8", errors="replace")
    if _QUOTES not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except SyntaxError:
        return
    yield from _of_body(module, tree.body, "")


def _of_body(module: str, body: Sequence[ast.stmt], outer: str) -> Iterator[Docstring]:
    """Yield the docstrings of definitions that follow one another.

    Args:
        module: dotted name.
        body: statements.
        outer: the head of the class around them; empty for none.
    """
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        head, answer = _head(node), _first_paragraph(node)
        if answer is not None and head is not None:
            indent = "    " * (bool(outer) + 1)
            lines = [f"# {module}", *([outer] if outer else []), "    " * bool(outer) + head]
            yield Docstring(module, "\n".join([*lines, indent + _QUOTES]), answer)
        if isinstance(node, ast.ClassDef) and not outer and head is not None:
            yield from _of_body(module, node.body, head)


def _head(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Return a signature in one line; None if it is long."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        head = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    else:
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        head = f"def {node.name}({ast.unparse(node.args)}){returns}:"
    return head if len(head) <= LONGEST_SIGNATURE else None


def _first_paragraph(
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> str | None:
    """Return the first paragraph of a docstring if it is prose of some words."""
    docstring = ast.get_docstring(node) or ""
    text = " ".join(re.split(r"\n\s*\n", docstring)[0].split())
    prose = text[:1].isalpha() and text.endswith(".") and text.isascii()
    prose = prose and not any(mark in text for mark in _NO_PROSE)
    return text if prose and FEWEST_WORDS <= len(text.split()) <= MOST_WORDS else None


def first_sentence(text: str) -> str:
    """Return a text up to the first stop that a space follows."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def normalised(text: str) -> str:
    """Return the words of a text in lower case, without the names of code."""
    return " ".join(_WORD.findall(_NAME.sub(" ", text).lower()))


def shingles(text: str) -> set[str]:
    """Return every `SHINGLE` normalised words in a row; all of them where there are fewer."""
    words = normalised(text).split()
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def split(found: Sequence[Docstring], n_judged: int, n_tuning: int) -> DocstringSplits:
    """Share modules out by the digest of their names.

    Args:
        found: from `harvest`.
        n_judged: docstrings to judge on.
        n_tuning: docstrings to tune on.

    Raises:
        DataError: there are not so many.
    """
    of: dict[str, list[Docstring]] = {}
    for one in found:
        of.setdefault(one.module, []).append(one)
    modules = iter(sorted(of, key=lambda name: hashlib.sha256(name.encode()).digest()))
    judged = _taken(of, modules, n_judged)
    away = _all_shingles(judged)
    tuning = _taken(of, modules, n_tuning, away)
    away |= _all_shingles(tuning)
    left = set(modules)
    train = [d for d in found if d.module in left and away.isdisjoint(shingles(d.answer))]
    if len(judged) < n_judged or len(tuning) < n_tuning or not train:
        raise DataError(
            f"{len(found)} docstrings are too few: {n_judged} are to be judged and {n_tuning} to "
            f"be tuned on, and others to be learned from. Name more packages."
        )
    return DocstringSplits(tuple(train), tuple(tuning), tuple(judged))


def _taken(
    of: dict[str, list[Docstring]], modules: Iterator[str], n: int, away: Iterable[str] = ()
) -> list[Docstring]:
    """Return docstrings of the next modules, `MOST_OF_MODULE` of each, until there are n."""
    taken: list[Docstring] = []
    known = frozenset(away)
    while len(taken) < n and (module := next(modules, None)) is not None:
        fresh = [d for d in of[module] if known.isdisjoint(shingles(d.answer))]
        taken += fresh[:MOST_OF_MODULE]
    return taken[:n]


def _all_shingles(found: Iterable[Docstring]) -> set[str]:
    return set().union(*(shingles(one.answer) for one in found))
