"""The documents keep their word: links lead somewhere, names exist, examples run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAPER_MAP = ROOT / "docs" / "paper-map.md"

LINK = re.compile(r"""\]\(([^)\s]+)\)|<(?:source|img)[^>]*? src(?:set)?="([^"]+)\"""")
DOTTED = re.compile(r"`((?:rankcast|studies)(?:\.\w+)+)")
PATH = re.compile(r"`((?:src|tests|docs|studies|benchmarks)/[^`\s]*)`")
PLACEHOLDER = re.compile(r"NAME|\*")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
STUDY = ["python3", "dev.py", "study"]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RESULTS = re.compile(r"<!-- results:(\S+) -->\n(.*?)<!-- /results -->", re.DOTALL)

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def python_blocks(*, runnable: bool) -> list[object]:
    blocks = []
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in BLOCK.finditer(text):
            if ("runnable" in match[1].split()) is runnable:
                line = text.count("\n", 0, match.start(2))
                where = f"{document.relative_to(ROOT)}:{line}"
                # Blank lines keep the line numbers of a traceback those of the document.
                blocks.append(pytest.param(document, "\n" * line + match[2], id=where))
    return blocks


def resolve(dotted: str) -> None:
    """Import the longest module that a dotted name begins with and follow the rest."""
    parts = dotted.split(".")
    n_modules = len(parts)
    while importlib.util.find_spec(parts[0]) and not is_module(".".join(parts[:n_modules])):
        n_modules -= 1
    value: object = importlib.import_module(".".join(parts[:n_modules]))
    for part in parts[n_modules:]:
        if is_dataclass(value) and part in {field.name for field in fields(value)}:
            return
        value = getattr(value, part)


def is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


def anchors(file: Path) -> set[str]:
    """Return the anchors that links may lead to: those of the headings, and explicit ones."""
    text = file.read_text("utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    named = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    return named | set(re.findall(r'<a id="([^"]+)">', text))


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"render_{file.parent.name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@each_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in sorted({a or b for a, b in LINK.findall(document.read_text("utf-8"))}):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@each_document
def test_code_names_exist(document: Path) -> None:
    missing = []
    for name in sorted(set(DOTTED.findall(document.read_text("utf-8")))):
        try:
            resolve(name)
        except (AttributeError, ImportError) as error:
            missing.append(f"{name}: {error}")
    assert missing == []


@each_document
def test_paths_exist(document: Path) -> None:
    paths = sorted(set(PATH.findall(document.read_text("utf-8"))))
    known = [path for path in paths if not PLACEHOLDER.search(path)]
    assert [path for path in known if not (ROOT / path).exists()] == []


def test_the_paper_map_covers_the_paper() -> None:
    text = PAPER_MAP.read_text("utf-8")
    equations = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert equations == set(range(1, 20))
    tables = set(re.findall(r"^\| Table ([IV]+) \|", text, re.MULTILINE))
    assert tables == {"I", "II", "III", "IV", "V", "VI"}
    figures = {int(n) for n in re.findall(r"^\| Fig\. (\d) \|", text, re.MULTILINE)}
    assert figures == set(range(1, 9))


@pytest.mark.parametrize(("document", "source"), python_blocks(runnable=True))
def test_runnable_blocks_run(
    document: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)  # dataclasses look their module up
    code = compile(source, str(document), "exec", dont_inherit=True)
    before = set(vars(example))
    exec(code, vars(example))  # noqa: S102 - our own documents
    assert set(vars(example)) - before, f"The example in {document} does nothing."


@pytest.mark.parametrize(("document", "source"), python_blocks(runnable=False))
def test_other_blocks_import_what_exists(document: Path, source: str) -> None:
    missing = []
    for node in ast.walk(ast.parse(source, str(document))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankcast"):
            for alias in node.names:
                try:
                    resolve(f"{node.module}.{alias.name}")
                except (AttributeError, ImportError) as error:
                    missing.append(f"{node.module}.{alias.name}: {error}")
    assert missing == []


def test_extending_shows_every_kind_of_extension_in_runnable_code() -> None:
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) >= 4
    silent = [s.partition("\n")[0] for s in sections if "```python runnable" not in s]
    assert silent == []


def commands(document: Path) -> list[list[str]]:
    """Return the words of every command in the shell blocks of a document, up to any `>`."""
    blocks = SHELL.findall(document.read_text("utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    each = [shlex.split(line, comments=True) for line in lines]
    return [words[: words.index(">")] if ">" in words else words for words in each]


@each_document
def test_commands_are_understood(document: Path) -> None:
    from rankcast.cli.main import parse

    for words in commands(document):
        if words[:1] == ["rankcast"]:  # no run is here, so that its settings are a preset's
            command = parse(["tiny" if word.endswith(".yaml") else word for word in words[1:]])
            assert callable(command.run), words


@each_document
def test_commands_of_studies_are_understood(document: Path) -> None:
    from rankcast.cli.parsing import parse_options
    from studies.harness.cli import PROGRAM, Studies

    for words in commands(document):
        if words[:3] == STUDY:
            action = Studies.COMMANDS[words[3]]
            assert isinstance(parse_options(action, words[4:], PROGRAM), action), words


def test_the_readme_shows_how_to_try_it_test_it_and_pack() -> None:
    shown = commands(ROOT / "README.md")
    assert ["python3", "dev.py", "demo"] in shown
    assert ["python3", "dev.py", "test"] in shown
    assert {words[1] for words in shown if words[:1] == ["rankcast"]} >= {"pack", "info", "export"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_a_page_shows_every_command() -> None:
    from rankcast.cli.main import GROUPS

    page = commands(ROOT / "docs" / "commands.md")
    shown = {words[1] for words in page if words[:1] == ["rankcast"]}
    assert shown >= {name for group in GROUPS.values() for name in group}


def test_every_decision_is_listed() -> None:
    listed = re.findall(r"\]\((adr/[^)]+)\)", (ROOT / "docs" / "decisions.md").read_text("utf-8"))
    decided = [f"adr/{p.name}" for p in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    assert listed == decided, "The table in docs/decisions.md is out of date."


def test_the_table_of_studies_says_what_the_folders_say() -> None:
    from studies.harness.catalogue import Catalogue

    text = (ROOT / "docs" / "studies.md").read_text("utf-8")
    row = r"^\| \[`(\w+)`\]\(\.\./studies/\1/README\.md\) \| (.+?) \| (.+?) \|$"
    listed = re.findall(row, text, re.MULTILINE)
    studies = [(s.name, s.source, s.question) for s in Catalogue(ROOT / "studies").load_all()]
    assert sorted(listed) == sorted(studies), "The table in docs/studies.md is out of date."


@pytest.fixture(scope="module")
def committed() -> Any:
    """Return every study as the committed result files alone present it."""
    from studies.harness.catalogue import Catalogue
    from studies.harness.store import Store
    from studies.report.scoreboard import present_all

    catalogue = Catalogue(ROOT / "studies")
    store = Store(ROOT / "studies", ROOT / "no-rows-of-this-machine")
    return present_all(catalogue, catalogue.load_all(), store)


def test_the_committed_report_is_what_the_result_files_say(committed: Any) -> None:
    from studies.report.html import render_html
    from studies.report.markdown import render_markdown
    from studies.report.page import make_page

    page, folder = make_page(committed), ROOT / "docs" / "scoreboard"
    drawing = re.compile("<svg.*?</svg>", re.DOTALL)  # a tenth of a pixel may differ by machine
    shown = (folder / "report.md").read_text("utf-8")
    whole = (folder / "report.html").read_text("utf-8")
    again = "Out of date: python3 dev.py study report --work no-rows --output docs/scoreboard"
    assert shown == render_markdown(page), again
    assert drawing.sub("", whole) == drawing.sub("", render_html(page)), again
    drawn = {Path(figure.file).name for section in page.sections for figure in section.figures}
    assert {file.name for file in (folder / "images").iterdir()} == drawn
    assert len(whole.encode("utf-8")) < 300_000, "The page is to open at once on a slow link."


def test_results_tables_are_what_the_result_files_say(committed: Any) -> None:
    """A block `results:NAME` holds what `studies/NAME` makes of its result file alone."""
    from studies.report.blocks import blocks_of

    blocks = blocks_of(committed)
    for document in (*DOCUMENTS, *sorted((ROOT / "studies").glob("*/README.md"))):
        for name, shown in RESULTS.findall(document.read_text("utf-8")):
            script = ROOT / "studies" / name / "render.py"
            rendered = load(script).render() if script.exists() else blocks.get(name, "")
            assert shown.strip() == rendered.strip(), f"{name} in {document} is out of date."
