"""`rankcast qat`: quantization-aware training of an adapter, so that it codes small."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rankcast.cli.common import INTERRUPTED, judged_words, print_json, sized_words
from rankcast.config.codec import CodecConfig
from rankcast.errors import ConfigError
from rankcast.packaging.texts import Texts

if TYPE_CHECKING:
    from rankcast.packaging.qat import QatResult
    from rankcast.training.byte_run import SizedAdapter, SizeRow


@dataclass(frozen=True)
class Qat:
    """Train an adapter on rounded weights, so that it codes much smaller.

    rankcast qat runs/demo -o runs/demo/qat

    rankcast pack runs/demo/qat -o demo.rcast

    rankcast qat runs/demo -o runs/demo/two-packets --target-bytes 2000 --steps 3000

    With --target-bytes the file that pack makes then has at most so many bytes, header included:
    components and weights that are worth less than their bits go. Thousands of steps serve it.

    rankcast qat my-lora -o small --base-model models/gemma --texts questions.jsonl --prompt-column
    prompt --completion-column answer --held-out more-questions.jsonl

    The report is on texts that were not trained on: those of --held-out, or a part of the texts.

    Takes what rankcast pack takes. Ctrl-C keeps what was trained; the same command goes on.
    """

    adapter: tyro.conf.Positional[Path]
    """Folder of a run or of an adapter."""
    output: Path
    """Folder to write, for rankcast pack and rankcast.adapters.export.load_adapter."""
    target_bytes: int | None = None
    """Train for a file of at most so many bytes."""
    prefix_bytes: tuple[int, ...] = ()
    """With --target-bytes: smaller sizes, ascending, at which the file's beginning is to be an
    adapter that was trained for that size."""
    rank: int | None = None
    """With --target-bytes: components of each projection that every size adds, at most; by default
    as many as suit its bytes."""
    steps: int = 400
    """Training steps."""
    lr: float = 1e-3
    """Learning rate at the beginning; it falls to zero."""
    relative_step: float | None = None
    """Quantiser step beside the root mean square of the weights: larger codes smaller. 3, or what
    suits --target-bytes, where it is a beginning and steps train."""
    rate_weight: float | None = None
    """Price of one bit [nats]: a larger one gives a smaller file. 6e-7; --target-bytes finds its
    own."""
    labels: bool = False
    """Train towards the labels instead of towards what the adapter answers now."""
    texts: Annotated[Texts, tyro.conf.arg(name="")] = field(default_factory=Texts)
    json: bool = False
    """Print what was reached as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Train with a progress bar and print what was reached."""
        if self.target_bytes is not None:
            return self._run_to_size(self.target_bytes)
        if self.rank is not None or self.prefix_bytes:
            raise ConfigError("--rank and --prefix-bytes need --target-bytes.")
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
                    **before.to_plain("_before"),
                    **after.to_plain(),
                    "loss_rose": after.loss > before.loss,
                    "n_texts": after.n_examples,
                    "n_cut_answers": result.n_cut,
                }
            )
            return 0
        print(
            f"{self.output}: codes {smaller:.0f} times smaller than float32, "
            f"{result.n_bits // 8:,} bytes. {judged_words(before, after, 'before')} "
            f"Next: rankcast pack {self.output} -o NAME.rcast"
        )
        return 0

    def _run_to_size(self, target_bytes: int) -> int:
        """Train for a file of a given size and print what it costs."""
        if self.rate_weight is not None:
            raise ConfigError("Give --target-bytes or --rate-weight, not both.")
        result = self._train_to_size(target_bytes)
        if result is None:
            return INTERRUPTED
        if self.json:
            print_json({"folder": str(self.output), **result.to_plain()})
            return 0
        print(f"{sized_words(result)} Next: rankcast pack {self.output} -o NAME.rcast")
        return 0

    def _train_to_size(self, target_bytes: int) -> SizedAdapter | None:
        """Train until the end, or until somebody stops it: None."""
        from rankcast.cli.common import stop_on_signal
        from rankcast.cli.console import SizeProgress, stderr
        from rankcast.packaging.qat import SizeConfig, train_to_size

        codec = CodecConfig(
            target_bytes,
            self.prefix_bytes,
            rank=self.rank,
            teachers=0,  # the adapter itself is one
            relative_step=self.relative_step,
        )
        config = SizeConfig(codec, self.steps, self.lr, distil=not self.labels)
        with (
            stop_on_signal("this step") as stopping,
            closing(SizeProgress(stderr(), self.steps)) as bar,
        ):

            def on_step(row: SizeRow) -> bool:
                bar.on_step(row)
                return stopping()

            result = train_to_size(self.adapter, self.output, config, self.texts, on_step)
        if result is None:
            print(f"Stopped after step {bar.done}; the same command goes on.", file=sys.stderr)
        return result

    def _train(self) -> QatResult | None:
        """Train until the end, or until somebody stops it: None."""
        from rankcast.cli.common import stop_on_signal
        from rankcast.cli.console import SizeProgress, stderr
        from rankcast.learner.qat import QatConfig
        from rankcast.packaging.qat import train_on_rounded_weights

        chosen = {
            "relative_step": self.relative_step,
            "rate_weight": self.rate_weight,
        }
        known = {name: value for name, value in chosen.items() if value is not None}
        config = QatConfig(self.steps, self.lr, distil=not self.labels, **known)
        with (
            stop_on_signal("this step") as stopping,
            closing(SizeProgress(stderr(), self.steps)) as bar,
        ):

            def on_step(step: int, loss: float) -> bool:
                bar.on_loss(step, loss)
                return stopping()

            result = train_on_rounded_weights(
                self.adapter, self.output, config, self.texts, on_step
            )
        if result is None:
            print(f"Stopped after step {bar.done}; the same command goes on.", file=sys.stderr)
        return result
