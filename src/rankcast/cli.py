"""The command line: parse, call, print.

Nothing heavy is imported before a command has been understood, so that `rankcast --help` answers at
once; torch comes with the first command that needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from rankcast.errors import ConfigError, RankcastError
from rankcast.run.air_options import Link, Send
from rankcast.run.delivery_options import Keys, Publish
from rankcast.run.edge_options import Edge
from rankcast.run.file_options import Export, Finish, Info, Pack, Unpack, Verify
from rankcast.run.options import Allocate, Command, Demo, Evaluate, Experiment, Presets, Train
from rankcast.run.rehearse_options import Rehearse
from rankcast.run.serve_options import Serve, Tokens
from rankcast.run.signals import INTERRUPTED

DESCRIPTION = """Choose the rank of every low-rank adapter for the radio link of this moment.

Try it: rankcast demo. Then: rankcast allocate --run runs/demo --snr-db 5 --bandwidth-hz 2e6
--deadline-s 1"""

THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
"""Read when torch and NumPy load. Waiting threads give their core away: beside any other work,
two that spin make a training step five times slower. The policy's small systems want one."""

EXTRAS = {"scipy": "link", "torch": "train", "transformers": "train"}
"""What brings a library that a command may lack."""


HANDLERS: dict[type, str] = {
    Train: "rankcast.run.commands:train",
    Demo: "rankcast.run.commands:train",
    Allocate: "rankcast.run.commands:allocate",
    Evaluate: "rankcast.run.commands:evaluate",
    Export: "rankcast.run.commands:export",
    Presets: "rankcast.run.commands:presets",
    Pack: "rankcast.run.containers:dispatch",
    Unpack: "rankcast.run.containers:dispatch",
    Info: "rankcast.run.containers:dispatch",
    Verify: "rankcast.run.containers:dispatch",
    Finish: "rankcast.run.commands:finish",
    Send: "rankcast.run.sending:send",
    Link: "rankcast.run.link_commands:dispatch",
    Experiment: "rankcast.experiment.commands:dispatch",
    Keys: "rankcast.run.key_commands:dispatch",
    Publish: "rankcast.run.publishing:dispatch",
    Serve: "rankcast.run.serving:serve",
    Tokens: "rankcast.run.serving:dispatch",
    Edge: "rankcast.run.edge_commands:dispatch",
    Rehearse: "rankcast.run.rehearsing:rehearse",
}
"""What does each command; imported when it is called."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; leave with 2 after an error of ours, 130 after an interruption."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    args = list(sys.argv[1:] if argv is None else argv)
    command, rest = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="rankcast",
        description=DESCRIPTION,
        args=args,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        status = _run(command, rest, ["rankcast", *args])
    except RankcastError as error:
        if command.debug:
            traceback.print_exc()
        print(f"rankcast: {error}", file=sys.stderr)  # noqa: T201
        status = 2
    except ModuleNotFoundError as error:
        lacking = str(error.name).partition(".")[0]
        if command.debug or lacking not in EXTRAS:
            raise
        remedy = f"pip install 'rankcast[{EXTRAS[lacking]}]'"
        print(f"rankcast: this needs {lacking}: {remedy}.", file=sys.stderr)  # noqa: T201
        status = 2
    except KeyboardInterrupt:
        print("rankcast: interrupted.", file=sys.stderr)  # noqa: T201
        status = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """Return `--a.b value` and `--a.b=value` as full names to text.

    Raises:
        ConfigError: an argument that is neither, or a name without a value.
    """
    found: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise ConfigError(f"{item!r} belongs to no option; settings are --section.name value.")
        name, equals, value = item[2:].partition("=")
        if not equals:
            value = next(items, None)
            if value is None:
                raise ConfigError(f"{item} needs a value: {item} VALUE.")
        found[name.replace("-", "_")] = value
    return found


def _run(command: Any, rest: list[str], typed: list[str]) -> int:
    """Do what a command says and return the exit status."""
    overrides = parse_overrides(rest)
    if overrides and not isinstance(command, Train | Demo):
        name = type(command).__name__.lower()
        raise ConfigError(f"rankcast {name} has no option --{next(iter(overrides))}.")
    module, _, function = HANDLERS[type(command)].partition(":")
    handle: Callable[..., int] = getattr(importlib.import_module(module), function)
    if isinstance(command, Train | Demo):
        return handle(command, overrides, typed)
    if isinstance(command, Experiment):
        return handle(command.action, typed)
    return handle(command)
