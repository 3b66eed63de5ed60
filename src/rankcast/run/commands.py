"""What the commands on runs do: train, allocate, evaluate, export, finish, presets."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from rankcast.errors import ConfigError
from rankcast.run.file_options import Export, Finish
from rankcast.run.options import Allocate, Demo, Evaluate, Presets, Train
from rankcast.run.signals import INTERRUPTED, stop_on_signal

if TYPE_CHECKING:
    from rankcast.run.config import RunConfig
    from rankcast.run.train import TrainResult


def train(command: Train | Demo, overrides: dict[str, str], typed: list[str]) -> int:
    """Train, and show what came of it; return the exit status."""
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


def allocate(command: Allocate) -> int:
    """Print the plan for a link; return the exit status."""
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


def evaluate(command: Evaluate) -> int:
    """Compare the run with others on the test split; return the exit status."""
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


def export(command: Export) -> int:
    """Write a file or a run as a LoRA, or in another format; return the exit status."""
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


def finish(command: Finish) -> int:
    """Train an adapter on rounded weights; return the exit status."""
    from rankcast.run.finishing import finish as train_on  # noqa: PLC0415

    with stop_on_signal("this step") as stopping:
        return 0 if train_on(command, stopping) else INTERRUPTED


def presets(command: Presets) -> int:
    """List the presets, or print one; return the exit status."""
    if command.name is None:
        from rankcast.run.presets import preset_names  # noqa: PLC0415

        for name, description in preset_names().items():
            print(f"{name:12} {description}")  # noqa: T201
    else:
        from rankcast.run.config import load_preset, to_yaml  # noqa: PLC0415

        print(to_yaml(load_preset(command.name)), end="")  # noqa: T201
    return 0
