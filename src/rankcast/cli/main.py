"""The command line: find the command, parse its options, run it, and end in a sentence.

A command NAME is the dataclass `Name` in `rankcast/cli/name.py`: its fields are its options, its
docstring is its help, and `run(argv)` does the work and returns the exit status. A group of
commands, such as `rankcast keys init|rotate|…`, is a class `Keys` with a docstring and a class
variable `COMMANDS = {"init": KeysInit, …}`. Nothing heavy is imported before `run`, so that help
answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from rankcast.errors import ConfigError, RankcastError, nearest
from rankcast.version import __version__

GROUPS = {
    "Try it": ("quickstart", "demo"),
    "Train a policy": ("train", "evaluate", "allocate", "presets"),
    "Package an adapter": ("pack", "unpack", "export", "info", "verify", "qat"),
    "Deliver it": ("keys", "publish", "serve", "devices", "rollout", "edge"),
    "Simulate": ("link", "simulate"),
}
"""Every command, by what it is for, in the order of `rankcast --help`."""

RENAMED = {
    "finish": "qat",
    "send": "link send",
    "rehearse": "simulate",
    "tokens": "devices",
    "experiment": "python3 dev.py study",
}
"""Old names of commands."""

RENAMED_OPTIONS = {
    ("edge watch", "--json"): "--log-format json",
    ("qat", "--bit-weight"): "--rate-weight",
    ("serve", "--open"): "--no-auth",
}
"""Old names of options, by command."""

THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
"""Read when torch and NumPy load. Waiting threads give their core away: beside any other work,
two that spin make a training step five times slower. The policy's small systems want one."""

EXTRAS = {
    "cachetools": "serve",
    "fastapi": "serve",
    "gguf": "gguf",
    "gymnasium": "train",
    "matplotlib": "train",
    "paho": "mqtt",
    "peft": "train",
    "prometheus_client": "serve",
    "psycopg": "postgres",
    "scipy": "link",
    "sionna": "phy",
    "sqlalchemy": "serve",
    "torch": "train",
    "transformers": "train",
    "uvicorn": "serve",
}
"""The extra that brings a library which a command may lack."""

_HELP = ("-h", "--help")


class Command(Protocol):
    """A parsed command, ready to run."""

    def run(self, argv: Sequence[str]) -> int:
        """Do it and return the exit status; `argv` is what was typed, to be recorded."""
        ...


def command_names() -> list[str]:
    """Return every command."""
    return [name for names in GROUPS.values() for name in names]


def command_class(name: str) -> type[Any]:
    """Return the dataclass of a command."""
    return getattr(importlib.import_module(f"rankcast.cli.{name}"), name.capitalize())


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; leave with 2 after an error of ours, 130 after an interruption."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        status = _run(args)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (RankcastError, ModuleNotFoundError, OSError, UnicodeError, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        print(f"rankcast: {_sentence(error)}", file=sys.stderr)
        status = 130 if isinstance(error, KeyboardInterrupt) else 2
    sys.exit(status)


def _run(args: list[str]) -> int:
    """Run one command and return its exit status, with everything written that it printed."""
    try:
        if not args or args[0] in _HELP:
            print(root_help())
            status = 0
        elif args[0] == "--version":
            print(f"rankcast {__version__}")
            status = 0
        else:
            status = parse(args).run(["rankcast", *args])
    except SystemExit as stop:  # tyro has printed help or what is wrong
        status = stop.code if isinstance(stop.code, int) else 2
    if sys.stdout is not None:  # closed by whoever started us
        sys.stdout.flush()  # a reader that has gone is noticed here, not when Python ends
    return status


def parse(argv: Sequence[str]) -> Command:
    """Return the command that was typed, without running it.

    Args:
        argv: command and options, without `rankcast`.

    Raises:
        ConfigError: no such command or option; names the nearest, or the new name of an old one.
        SystemExit: help was asked for, or options are missing or make no sense; that has been said.
    """
    from rankcast.cli.parsing import group_help, parse_options

    command, *args = argv
    _check_name(command)
    cls = command_class(command)
    if hasattr(cls, "COMMANDS"):
        if not args or args[0] in _HELP:
            print(group_help(cls, f"rankcast {command}"), file=sys.stdout if args else sys.stderr)
            raise SystemExit(0 if args else 2)
        action, *args = args
        if action not in cls.COMMANDS:
            hint = nearest(action, cls.COMMANDS) or f"; there are {', '.join(cls.COMMANDS)}."
            raise ConfigError(f"{command} has no command {action!r}{hint}")
        command, cls = f"{command} {action}", cls.COMMANDS[action]
    _check_options(command, args)
    default = cls.defaults(args) if hasattr(cls, "defaults") else None
    return parse_options(cls, args, f"rankcast {command}", default)


def _check_name(name: str) -> None:
    """Refuse a command that does not exist, and the old name of one."""
    if name in RENAMED:
        new = RENAMED[name] if name == "experiment" else f"rankcast {RENAMED[name]}"
        raise ConfigError(f"`rankcast {name}` is now `{new}`.")
    if name not in command_names():
        raise ConfigError(f"There is no command {name!r}{nearest(name, command_names()) or '.'}")


def _check_options(command: str, args: Sequence[str]) -> None:
    """Refuse the old name of an option."""
    for option in (arg.partition("=")[0] for arg in args):
        new = RENAMED_OPTIONS.get((command, option))
        if new is not None:
            raise ConfigError(f"`rankcast {command} {option}` is now `{new}`.")


def _sentence(error: BaseException) -> str:
    """Say what went wrong, and what to do where that is known.

    Raises:
        ModuleNotFoundError: the error itself, where it is no library of an extra.
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if isinstance(error, ModuleNotFoundError):
        lacking = str(error.name).partition(".")[0]
        if lacking not in EXTRAS:
            raise error
        return f"this needs {lacking}: pip install 'rankcast[{EXTRAS[lacking]}]'."
    if isinstance(error, UnicodeError):
        return f"a file or an option that should be text is not UTF-8 ({error})."
    if isinstance(error, OSError) and error.strerror and not isinstance(error, RankcastError):
        path = error.filename2 or error.filename  # the target of a rename
        where = "" if path is None else f"{path}: "
        return f"{where}{error.strerror}."
    return str(error)


def root_help() -> str:
    """Return the help of `rankcast` itself: every command with one sentence, on one screen."""
    from rankcast.cli.parsing import command_list

    lines = [
        "usage: rankcast COMMAND … [--help] [--version] [--debug]",
        "",
        "Decide how much of a LoRA adapter to send over this radio link, and deliver it.",
        "See rankcast COMMAND --help; --debug shows tracebacks.",
    ]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:", *command_list({name: command_class(name) for name in names})]
    return "\n".join(lines)
