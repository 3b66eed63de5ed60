"""`rankcast qat`: quantization-aware training of an adapter, so that it codes small."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rankcast.cli.common import INTERRUPTED, print_json
from rankcast.packaging.texts import Texts

if TYPE_CHECKING:
    from rankcast.packaging.qat import QatResult


@dataclass(frozen=True)
class Qat:
    """Train an adapter on rounded weights, so that it codes much smaller.

    rankcast qat runs/demo -o runs/demo/qat

    rankcast pack runs/demo/qat -o demo.rcast

    Takes what rankcast pack takes. Ctrl-C keeps what was trained; the same command goes on.
    """

    adapter: tyro.conf.Positional[Path]
    """Folder of a run or of an adapter."""
    output: Path
    """Folder to write, for rankcast pack and rankcast.adapters.export.load_adapter."""
    steps: int = 400
    """Training steps."""
    lr: float = 1e-3
    """Learning rate at the beginning; it falls to zero."""
    relative_step: float = 3.0
    """Quantiser step beside the root mean square of the weights: larger codes smaller."""
    rate_weight: float = 6e-7
    """Price of one bit [nats]: a larger one gives a smaller file."""
    labels: bool = False
    """Train towards the labels instead of towards what the adapter answers now."""
    texts: Annotated[Texts, tyro.conf.arg(name="")] = field(default_factory=Texts)
    json: bool = False
    """Print what was reached as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Train with a progress bar and print what was reached."""
        result = self._train()
        if result is None:
            return INTERRUPTED
        before, after = result.before, result.after
        smaller = result.float32_bits / result.n_bits
        if self.json:
            print_json(
                {
                    "folder": str(self.output),
                    "bits": result.n_bits,
                    "times_smaller": smaller,
                    "loss_before": before.loss,
                    "loss": after.loss,
                    "accuracy_before": before.accuracy,
                    "accuracy": after.accuracy,
                    "n_texts": after.n_examples,
                }
            )
            return 0
        print(
            f"{self.output}: codes {smaller:.0f} times smaller than float32, "
            f"{result.n_bits // 8:,} bytes. On {after.n_examples:,} validation texts loss "
            f"{before.loss:.3f} -> {after.loss:.3f}, accuracy {before.accuracy:.1%} -> "
            f"{after.accuracy:.1%} as decoded. Next: rankcast pack {self.output} -o NAME.rcast"
        )
        return 0

    def _train(self) -> QatResult | None:
        """Train until the end, or until somebody stops it: None."""
        from rich import progress

        from rankcast.cli.common import stop_on_signal
        from rankcast.cli.console import stderr
        from rankcast.learner.qat import QatConfig
        from rankcast.packaging.qat import train_on_rounded_weights

        config = QatConfig(
            self.steps, self.lr, self.relative_step, self.rate_weight, distil=not self.labels
        )
        columns = (
            progress.TextColumn("training"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("loss {task.fields[loss]:.3f}"),
        )
        done = 0
        with (
            stop_on_signal("this step") as stopping,
            progress.Progress(*columns, console=stderr()) as bar,
        ):
            task = bar.add_task("", total=self.steps, loss=float("nan"))

            def on_step(step: int, loss: float) -> bool:
                nonlocal done
                done = step
                bar.update(task, completed=step, loss=loss)
                return stopping()

            result = train_on_rounded_weights(
                self.adapter, self.output, config, self.texts, on_step
            )
        if result is None:
            print(f"Stopped after step {done}; the same command goes on.", file=sys.stderr)
        return result
