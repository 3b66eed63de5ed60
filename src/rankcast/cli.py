"""The command line: parse, call, print.

Nothing heavy is imported before a command has been understood, so that `rankcast --help` answers at
once; torch comes with the first command that needs it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tyro

from rankcast.errors import ConfigError, RankcastError
from rankcast.run.air_options import Link, Send
from rankcast.run.delivery_options import Keys, Publish
from rankcast.run.edge_options import Edge
from rankcast.run.file_options import Export, Finish, Info, Pack, Unpack, Verify
from rankcast.run.options import Allocate, Command, Demo, Evaluate, Experiment, Presets, Train
from rankcast.run.rehearse_options import Rehearse
from rankcast.run.serve_options import Serve, Tokens
from rankcast.run.signals import stop_on_signal

if TYPE_CHECKING:
    from rankcast.run.config import RunConfig
    from rankcast.run.train import TrainResult

DESCRIPTION = """Choose the rank of every low-rank adapter for the radio link of this moment.

Try it: rankcast demo. Then: rankcast allocate --run runs/demo --snr-db 5 --bandwidth-hz 2e6
--deadline-s 1"""

INTERRUPTED = 130
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
"""Read when torch and NumPy load. Waiting threads give their core away: beside any other work,
two that spin make a training step five times slower. The policy's small systems want one."""

EXTRAS = {"scipy": "link", "torch": "train", "transformers": "train"}
"""What brings a library that a command may lack."""


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
    if isinstance(command, Train | Demo):
        return _train(command, overrides, typed)
    if overrides:
        name = type(command).__name__.lower()
        raise ConfigError(f"rankcast {name} has no option --{next(iter(overrides))}.")
    if isinstance(command, Experiment):
        return _experiment(command, typed)
    if isinstance(command, Pack | Unpack | Info | Verify):
        from rankcast.run.containers import dispatch  # noqa: PLC0415

        return dispatch(command)
    if isinstance(command, Send):
        from rankcast.run.sending import send  # noqa: PLC0415

        return send(command)
    if isinstance(command, Link):
        from rankcast.run.link_commands import dispatch as look_at_link  # noqa: PLC0415

        return look_at_link(command)
    handlers: dict[type, Callable[[Any], int]] = {
        Allocate: _allocate,
        Evaluate: _evaluate,
        Export: _export,
        Finish: _finish,
        Presets: _presets,
        Keys: _keys,
        Publish: _publish,
        Serve: _serve,
        Tokens: _tokens,
        Edge: _edge,
        Rehearse: _rehearse,
    }
    return handlers[type(command)](command)


def _train(command: Train | Demo, overrides: dict[str, str], typed: list[str]) -> int:
    from rankcast.run.config import load_preset  # noqa: PLC0415

    demo = isinstance(command, Demo)
    config = load_preset("demo" if demo else command.preset, overrides)
    overwrite = command.overwrite or (demo and "output" not in overrides)
    outcome = _train_with_progress(
        config, typed, resume=not demo and command.resume, overwrite=overwrite
    )
    if not outcome.session.is_main:
        return 0 if outcome.finished else INTERRUPTED
    if not outcome.finished:
        print(  # noqa: T201
            f"rankcast: stopped after step {outcome.session.step}; continue with\n"
            f"  rankcast train {outcome.folder.config} --resume",
            file=sys.stderr,
        )
        return INTERRUPTED
    if demo:
        print("Comparing on the test split …", file=sys.stderr)  # noqa: T201
        _print_comparison(outcome.session, outcome.folder, as_json=command.json)
        if not command.json:
            _print_air_panel(config, outcome.folder)
    elif command.json:
        print(json.dumps(outcome.result, indent=2))  # noqa: T201
    else:
        from rankcast.run.console import result_table, stdout  # noqa: PLC0415

        stdout().print(result_table(outcome.result))
        stdout().print(f"Everything is in {outcome.folder.path}.")
    return 0


def _print_air_panel(config: RunConfig, folder: Any) -> None:
    from rankcast.run.air_panel import air_panel  # noqa: PLC0415
    from rankcast.run.console import stdout  # noqa: PLC0415

    panel = air_panel(folder.path, config.link.values_db)
    if panel is not None:
        stdout().print(panel)


def _train_with_progress(
    config: RunConfig, typed: list[str], *, resume: bool, overwrite: bool
) -> TrainResult:
    from rankcast.run.console import LiveProgress, stderr  # noqa: PLC0415
    from rankcast.run.train import Observer, train  # noqa: PLC0415

    print(f"Loading {config.finetune.model} and {config.data.source} …", file=sys.stderr)  # noqa: T201
    with stop_on_signal() as stopping, LiveProgress(stderr(), config.steps) as progress:
        observer = Observer(progress.on_step, progress.on_evaluation, stopping)
        return train(
            config,
            resume=resume,
            overwrite=overwrite,
            command=[shlex.join(typed)],
            observer=observer,
        )


def _allocate(command: Allocate) -> int:
    from rankcast.run.folder import RunFolder  # noqa: PLC0415
    from rankcast.run.planning import Planner  # noqa: PLC0415

    planner = Planner.load(RunFolder(command.run))
    link = planner.link(command.snr_db, command.bandwidth_hz, command.deadline_s)
    plan = planner.plan(link)
    if command.json:
        print(json.dumps(planner.describe(plan, link), indent=2))  # noqa: T201
    else:
        from rankcast.run.console import plan_table, plan_words, stdout  # noqa: PLC0415

        stdout().print(plan_words(plan, link))
        stdout().print(plan_table(planner.problem.layout, plan))
    return 0


def _evaluate(command: Evaluate) -> int:
    from rankcast.run.folder import RunFolder  # noqa: PLC0415
    from rankcast.run.session import Session  # noqa: PLC0415

    folder = RunFolder(command.run)
    session = Session(folder.load_config())
    session.load(folder)
    _print_comparison(session, folder, as_json=command.json)
    return 0


def _print_comparison(session: Any, folder: Any, *, as_json: bool) -> None:
    from rankcast.run.console import comparison_table, comparison_words, stdout  # noqa: PLC0415
    from rankcast.run.report import write_report  # noqa: PLC0415

    comparison, files = write_report(session, folder)
    if as_json:
        print(json.dumps(comparison.to_plain(), indent=2))  # noqa: T201
        return
    stdout().print(comparison_table(comparison))
    stdout().print(comparison_words(comparison))
    stdout().print("Pictures: " + ", ".join(map(str, files)))


def _export(command: Export) -> int:
    if (command.file is None) == (command.run is None):
        raise ConfigError("Name a file of rankcast pack to export, or a run with --run.")
    if command.file is not None:
        from rankcast.run.exporting import export_file  # noqa: PLC0415

        print(export_file(command))  # noqa: T201
        return 0
    if command.snr_db is None or command.format != "peft":
        raise ConfigError(
            "A run is exported for a link: give --snr-db. For other formats than peft, "
            "rankcast pack it first."
        )
    from rankcast.adapters.export import export_lora  # noqa: PLC0415
    from rankcast.run.folder import RunFolder  # noqa: PLC0415
    from rankcast.run.session import Session  # noqa: PLC0415

    assert command.run is not None
    folder = RunFolder(command.run)
    session = Session(folder.load_config())
    session.load(folder)
    planner = session.planner
    plan = planner.plan(planner.link(command.snr_db, command.bandwidth_hz, command.deadline_s))
    export_lora(session.learner.adapter, command.output, plan.ranks)
    print(f"{command.output}: plain LoRA, mean rank {plan.ranks.mean():.2f}.")  # noqa: T201
    return 0


def _finish(command: Finish) -> int:
    from rankcast.run.finishing import finish  # noqa: PLC0415

    with stop_on_signal("this step") as stopping:
        return 0 if finish(command, stopping) else INTERRUPTED


def _presets(command: Presets) -> int:
    if command.name is None:
        from rankcast.run.presets import preset_names  # noqa: PLC0415

        for name, description in preset_names().items():
            print(f"{name:12} {description}")  # noqa: T201
    else:
        from rankcast.run.config import load_preset, to_yaml  # noqa: PLC0415

        print(to_yaml(load_preset(command.name)), end="")  # noqa: T201
    return 0


def _serve(command: Serve) -> int:
    from rankcast.run.serving import serve  # noqa: PLC0415

    return serve(command)


def _tokens(command: Tokens) -> int:
    from rankcast.run.serving import dispatch  # noqa: PLC0415

    return dispatch(command)


def _experiment(command: Experiment, typed: list[str]) -> int:
    from rankcast.experiment.commands import dispatch  # noqa: PLC0415

    return dispatch(command.action, typed)


def _edge(command: Edge) -> int:
    from rankcast.run.edge_commands import dispatch  # noqa: PLC0415

    return dispatch(command)


def _rehearse(command: Rehearse) -> int:
    from rankcast.run.rehearsing import rehearse  # noqa: PLC0415

    return rehearse(command)


def _keys(command: Keys) -> int:
    from rankcast.run.key_commands import dispatch  # noqa: PLC0415

    return dispatch(command)


def _publish(command: Publish) -> int:
    from rankcast.run.publishing import dispatch  # noqa: PLC0415

    return dispatch(command)
