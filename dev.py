#!/usr/bin/env python3
"""Set up and run the project. Needs Python 3.11 or newer with pip, and nothing else.

    python3 dev.py demo     train a small policy, print what it chooses for each link, draw it
    python3 dev.py test     the test suite
    python3 dev.py check    formatter, linter, type checker, import layers
    python3 dev.py bench    the speed comparisons in benchmarks/
    python3 dev.py docs     build the documents as a site in site/; --serve shows it
    python3 dev.py study …  list, run and report the studies, see docs/studies.md
    python3 dev.py run …    any `rankcast …` command inside the environment

The environment is made in .venv on first use and again whenever pyproject.toml or
constraints.txt changes. Everything after the first word is passed on.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
STAMP = VENV / "rankcast-stamp"
INPUTS = ("pyproject.toml", "constraints.txt", "dev.py")


def environment() -> dict[str, str]:
    """Return the variables every child runs with.

    Bytecode is kept: without it importing torch and transformers takes three times as long,
    in every process. The hub is never asked for a model that is already on this machine.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', '')}"
    env["VIRTUAL_ENV"] = str(VENV)
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("NO_MKDOCS_2_WARNING", "1")  # pyproject.toml says which versions are meant
    return env


def run(*command: str) -> None:
    """Run a program of the environment; leave with its exit status if it fails."""
    program = BIN / command[0]
    try:
        status = subprocess.call([str(program), *command[1:]], cwd=ROOT, env=environment())
    except KeyboardInterrupt:
        sys.exit(130)
    if status:
        sys.exit(status)


def install() -> None:
    """Make or refresh .venv; does nothing when it already matches the project's files."""
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in INPUTS)).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    print("Setting up .venv (once; about a minute with a fast connection) …", flush=True)
    if not BIN.exists():
        venv.create(VENV, with_pip=True)
    run("python", "-m", "pip", "install", "--quiet", "--upgrade", "pip>=26")
    run(
        *("python", "-m", "pip", "install", "--quiet", "--no-compile", "-c", "constraints.txt"),
        *("--group", "test", "--group", "lint", "--group", "docs"),
        *("--editable", ".[band,demo,data,mqtt,phy,postgres,ray,serve]"),
    )
    STAMP.write_text(wanted)


def check(*args: str) -> None:
    """Formatter, linter, types, import layers."""
    run("ruff", "format", "--check", ".")
    run("ruff", "check", ".", *args)
    run("pyright")
    run("lint-imports", "--no-cache")


def docs(*args: str) -> None:
    """Build the site of the documents, or serve it here while they are edited."""
    options = [arg for arg in args if arg != "--serve"]
    run("mkdocs", "serve" if "--serve" in args else "build", *options)


COMMANDS = {
    "demo": lambda *args: run("rankcast", "demo", *args),
    "test": lambda *args: run("python", "-m", "pytest", *args),
    "check": check,
    "bench": lambda *args: run("python", "-m", "pytest", "benchmarks", "-n", "0", *args),
    "docs": docs,
    "study": lambda *args: run("python", "-m", "studies", *args),
    "run": lambda *args: run("rankcast", *args),
}


def main() -> None:
    """Read the command, prepare the environment, run."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything checks
        sys.exit(f"rankcast needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    install()
    COMMANDS[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
