"""`rankcast train`: a run from a preset, a file, or another run's settings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

import tyro

from rankcast.cli.common import INTERRUPTED, print_json, sized_words, stop_on_signal
from rankcast.config import RunConfig

if TYPE_CHECKING:
    from rankcast.training.folder import RunFolder
    from rankcast.training.run import TrainResult

Settings = Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
"""Every setting of a run as an option: --steps 300, --finetune.lr 1e-3, --link.process jakes."""

_FLAGS = ("--resume", "--overwrite", "--json")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train adapters and policy; options replace settings of the preset.

    rankcast train tiny

    rankcast train sst2-minilm --data.source ~/sst2 --finetune.lr 1e-3 --output runs/sst2

    rankcast train runs/sst2/config.yaml --resume

    rankcast train sst2-minilm --data.source ~/sst2 --codec.target-bytes 2000 --steps 3000

    rankcast train gemma3-270m --data.source chats.jsonl --data.messages-column messages

    With --codec.target-bytes one adapter is trained whose whole file has at most so many bytes;
    without, a policy that chooses ranks for every link. With --codec.prefix-bytes and
    --codec.plan-episodes, too, a policy chooses what of that file each link gets.

    Defaults are shown as the preset sets them: see rankcast train demo --help.
    """

    preset: tyro.conf.Positional[str]
    """Where to begin: tiny, demo, sst2-minilm, gemma3-270m and so on (see rankcast presets), or a
    YAML file."""
    resume: bool = False
    """Continue from the last checkpoint in the run's folder."""
    overwrite: bool = False
    """Replace a run that is in the folder."""
    json: bool = False
    """Print the result as JSON."""
    settings: Settings

    @classmethod
    def defaults(cls, args: Sequence[str]) -> Self:
        """Return the preset that is named first, so that options replace its settings."""
        from rankcast.presets import load_preset, typed_first

        named = [
            arg
            for before, arg in zip(["", *args], args, strict=False)
            if not arg.startswith("-") and (before in _FLAGS or not before.startswith("-"))
        ]
        if not named:
            return cls(preset=tyro.MISSING, settings=RunConfig())
        return cls(preset=named[0], settings=load_preset(named[0], typed_first(args)))

    def run(self, argv: Sequence[str]) -> int:
        """Train, and print the result."""
        self._say_what_the_preset_suits()
        if self.settings.codec.target_bytes is not None:
            return self._run_to_size(argv)
        outcome = train_with_progress(
            self.settings, argv, resume=self.resume, overwrite=self.overwrite
        )
        if not (outcome.finished and outcome.session.is_main):
            return stopped(outcome)
        if self.json:
            print_json(outcome.result)
            return 0
        from rankcast.cli.console import result_table, stdout

        stdout().print(result_table(outcome.result))
        stdout().print(f"Everything is in {outcome.folder.path}.")
        return 0

    def _say_what_the_preset_suits(self) -> None:
        """Say so where a preset for an encoder meets a decoder."""
        from rankcast.presets import FOR_ENCODERS

        if self.preset not in FOR_ENCODERS:
            return
        from rankcast.learner.base_models import is_decoder

        finetune = self.settings.finetune
        if finetune.objective == "causal" or is_decoder(finetune.model):
            print(
                f"rankcast: the preset {self.preset} was made for an encoder that classifies "
                f"(learning rate {finetune.lr:g}); for a decoder such as {finetune.model} begin "
                f"with gemma3-270m, llama-1b or qwen3-0.6b and --finetune.model.",
                file=sys.stderr,
            )

    def _run_to_size(self, argv: Sequence[str]) -> int:
        """Train one file of a given size, and print what the size costs."""
        from rankcast.cli.console import SizeProgress, stderr
        from rankcast.training.byte_run import train_to_size

        config = self.settings
        print(f"Loading {config.finetune.model} and {config.data.source} …", file=sys.stderr)
        with (
            stop_on_signal() as stopping,
            closing(SizeProgress(stderr(), config.steps, config.codec.plan_episodes)) as bar,
        ):
            outcome = train_to_size(
                config,
                resume=self.resume,
                overwrite=self.overwrite,
                command=[shlex.join(argv)],
                on_step=bar.on_step,
                on_episode=bar.on_episode,
                should_stop=stopping,
            )
        if not outcome.is_main:
            return 0
        if outcome.adapter is None:
            return stopped_at(outcome.step, outcome.folder)
        if self.json:
            print_json(outcome.result)
            return 0
        print(f"{outcome.folder.file}: {sized_words(outcome.adapter)}")
        if outcome.links:
            from rankcast.cli.console import planned_table, stdout

            stdout().print(planned_table(outcome.links))
        print(f"Everything is in {outcome.folder.path}. See rankcast info {outcome.folder.file}")
        return 0


def train_with_progress(
    config: RunConfig, argv: Sequence[str], *, resume: bool, overwrite: bool
) -> TrainResult:
    """Train with a bar on standard error; the first Ctrl-C ends the run with a checkpoint."""
    from rankcast.cli.console import LiveProgress, stderr
    from rankcast.training.run import train

    print(f"Loading {config.finetune.model} and {config.data.source} …", file=sys.stderr)
    with stop_on_signal() as stopping, closing(LiveProgress(stderr(), config.steps)) as progress:
        return train(
            config,
            resume=resume,
            overwrite=overwrite,
            command=[shlex.join(argv)],
            on_step=progress.on_step,
            on_evaluation=progress.on_evaluation,
            should_stop=stopping,
        )


def stopped(outcome: TrainResult) -> int:
    """Say how a run that was stopped goes on, and return the exit status of this process."""
    if outcome.finished:
        return 0  # another process prints the result
    if outcome.session.is_main:
        stopped_at(outcome.session.step, outcome.folder)
    return INTERRUPTED


def stopped_at(step: int, folder: RunFolder) -> int:
    """Say how a run that was stopped at a step goes on, and return the exit status."""
    print(
        f"rankcast: stopped after step {step}; continue with\n"
        f"  rankcast train {folder.config} --resume",
        file=sys.stderr,
    )
    return INTERRUPTED
