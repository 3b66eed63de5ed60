"""What each command takes, with the help that `rankcast COMMAND --help` prints.

Read before a command is understood: nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


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
class Export:
    """Write the plan for a link as a plain LoRA, for PEFT, vLLM and others.

    rankcast export --run runs/demo --snr-db 5 --output adapters/at-5-db
    """

    run: Path
    """Folder of a trained run."""
    snr_db: float
    """Received Es/N0 [dB]."""
    output: Path
    """Folder to write."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Time in which the plan has to arrive [s]; the run's own if left out."""
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


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Allocate, tyro.conf.subcommand("allocate")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Presets, tyro.conf.subcommand("presets")]
)
