"""What each command takes, with the help that `rankcast COMMAND --help` prints.

Read before a command is understood: nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rankcast.run.air_options import Link, Send
from rankcast.run.delivery_options import Keys, Publish
from rankcast.run.edge_options import Edge
from rankcast.run.file_options import Export, Finish, Info, Pack, Unpack, Verify
from rankcast.run.rehearse_options import Rehearse
from rankcast.run.serve_options import Serve, Tokens


@dataclass(frozen=True)
class Train:
    """Train adapters and policy; any setting of the preset can be replaced.

    rankcast train tiny

    rankcast train sst2-minilm --data.source ~/sst2 --finetune.lr 1e-3 --output runs/sst2

    rankcast train runs/sst2/config.yaml --resume
    """

    preset: tyro.conf.Positional[str]
    """tiny, demo, sst2-minilm, paper (see `rankcast presets`), or a YAML file. Settings follow it
    as --section.name value."""
    resume: bool = False
    """Continue from the last checkpoint in the run's folder."""
    overwrite: bool = False
    """Replace a run that is in the folder."""
    json: bool = False
    """Print the result as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Demo:
    """Train MiniLM on docstrings for minutes, then compare and draw what is sent on each link.

    rankcast demo

    rankcast demo --steps 150 --output runs/short
    """

    overwrite: bool = False
    """Replace a run in the folder given with --output (runs/demo is always replaced)."""
    json: bool = False
    """Print the comparison as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Allocate:
    """Say which ranks to send over a link; answers without loading the base model.

    rankcast allocate --run runs/demo --snr-db 5 --bandwidth-hz 2e6 --deadline-s 1
    """

    run: Path
    """Folder of a trained run."""
    snr_db: float
    """Received Es/N0 [dB]."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Time in which the plan has to arrive [s]; the run's own if left out."""
    json: bool = False
    """Print the plan as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Evaluate:
    """Compare AirLLM with uniform ranks, random ranks and the exact solver on the test split.

    rankcast evaluate --run runs/demo --json
    """

    run: Path
    """Folder of a trained run; comparison.json, ranks.png and learning.png are written there."""
    json: bool = False
    """Print the comparison as JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Presets:
    """List the presets, or print every setting of one.

    rankcast presets demo
    """

    name: tyro.conf.Positional[str | None] = None
    """A preset or YAML file; its settings can be replaced on the command line by the same names."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class _ExperimentOptions:
    """What the commands of experiments have in common."""

    quick: bool = False
    """The scale of seconds that only shows that it runs; short for --scale quick."""
    scale: Literal["quick", "default", "paper"] = "default"
    """Which scale; paper needs a GPU and the hub."""
    experiments: Path | None = None
    """Folder of the experiments; `experiments` here or further up if left out."""
    work: Path | None = None
    """Folder of rows and checkpoints; runs/experiments beside the experiments if left out."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class ExperimentList(_ExperimentOptions):
    """List the experiments and how many of their rows there are.

    rankcast experiment list --json
    """


@dataclass(frozen=True)
class ExperimentRun(_ExperimentOptions):
    """Run experiments and what they need; finished jobs are skipped, so the same line resumes.

    rankcast experiment run table3

    rankcast experiment run --all --quick

    rankcast experiment run rate_accuracy --engine ray --workers 16

    To run a finished job again, delete its row in WORK/SCALE/NAME/rows.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; see `rankcast experiment list`."""
    all: bool = False
    """All of them."""
    workers: int = 2
    """Worker processes, each with one thread."""
    engine: Literal["local", "ray"] = "local"
    """ray: on the cluster that RAY_ADDRESS names, else on a new one on this machine."""
    data: Path | None = None
    """Folder of the data sets; RANKCAST_DATA or shared/data further up if left out."""


@dataclass(frozen=True)
class ExperimentReport(_ExperimentOptions):
    """Write a page with every claim, table and chart, from the results alone.

    rankcast experiment report --open

    rankcast experiment report table3 --json
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; all of them if left out."""
    output: Path | None = None
    """Folder to write; WORK/report if left out."""
    update: tuple[Path, ...] = ()
    """Documents whose result blocks are renewed, such as README.md; no page is written then."""
    open: bool = False
    """Show the page in a browser."""


@dataclass(frozen=True)
class Experiment:
    """Test the paper's claims and our own: run experiments, list them, report what came out.

    rankcast experiment list

    rankcast experiment run table3 --quick

    rankcast experiment report --open
    """

    action: tyro.conf.OmitSubcommandPrefixes[
        Annotated[ExperimentList, tyro.conf.subcommand("list")]
        | Annotated[ExperimentRun, tyro.conf.subcommand("run")]
        | Annotated[ExperimentReport, tyro.conf.subcommand("report")]
    ]

    @property
    def debug(self) -> bool:
        """Whether to show the traceback of an error."""
        return self.action.debug


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Allocate, tyro.conf.subcommand("allocate")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Finish, tyro.conf.subcommand("finish")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Unpack, tyro.conf.subcommand("unpack")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Send, tyro.conf.subcommand("send")]
    | Annotated[Link, tyro.conf.subcommand("link")]
    | Annotated[Presets, tyro.conf.subcommand("presets")]
    | Annotated[Experiment, tyro.conf.subcommand("experiment")]
    | Annotated[Keys, tyro.conf.subcommand("keys")]
    | Annotated[Publish, tyro.conf.subcommand("publish")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Tokens, tyro.conf.subcommand("tokens")]
    | Annotated[Edge, tyro.conf.subcommand("edge")]
    | Annotated[Rehearse, tyro.conf.subcommand("rehearse")]
)
