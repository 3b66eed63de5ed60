"""`rankcast pack`: an adapter becomes a `.rcast` file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rankcast.cli.common import check_free, mean_rank, print_json, why_general
from rankcast.errors import ConfigError
from rankcast.files import disk_errors, put_file
from rankcast.packaging.texts import OnPass, Texts

if TYPE_CHECKING:
    from rankcast.codec.container import Container
    from rankcast.packaging.pack import Cost


@dataclass(frozen=True)
class Pack:
    """Code an adapter into one small file whose prefixes are adapters.

    rankcast pack runs/demo -o demo.rcast

    rankcast pack my-peft-lora -o my.rcast --target-bytes 4000

    rankcast pack runs/demo -o demo.rcast --snr-db 5 --bandwidth-hz 1e5 --deadline-s 1

    rankcast pack runs/demo -o demo.rcast --measure

    rankcast pack my-pissa-lora -o my.rcast --base-model models/llama

    rankcast pack runs/next -o next.rcast --previous demo.rcast

    Takes runs of rankcast, and adapters of every kind that PEFT saved: LoRA and AdaLoRA as
    factors, whose ranks shrink with the file; all others, and LoRAs that are more than factors, in
    general form. Weights are rounded, and it says what that loses. What cannot be carried at all is
    refused. Needs torch only to measure. For the fewest bytes, rankcast qat comes first.
    """

    adapter: tyro.conf.Positional[Path]
    """Folder of a run or of an adapter."""
    output: Path
    """File to write, NAME.rcast."""
    quality: Literal["fine", "good", "small"] | None = None
    """Quantiser step beside the root mean square of the weights: half, one, or two. good if nothing
    else is asked for."""
    budget_bits: float | None = None
    """Choose the finest step at which the whole file has at most so many bits."""
    target_bytes: int | None = None
    """Choose components and steps with which a file of at most so many bytes, header included,
    loses least of the update's energy. Says how much that is. With --measure or --texts it also
    tries the finest common step, measures what the model loses with other ranks and steps of each
    projection, and rounds by the curvature of the loss, each also with a larger update, as coarse
    rounding makes it smaller; it keeps the best, and says what the size costs in loss."""
    level_texts: int | None = None
    """With --target-bytes and --measure or --texts: training texts on which ranks and steps are
    measured, in at most 16 passes over them for each projection. 32 for a classifier; 0, which
    measures none, for a language model."""
    curvature_texts: int | None = None
    """With the same: training texts on which the curvature of the loss is measured, in one pass
    forward and one backward. 128 for a language model; 0, which measures none, for a classifier.
    Takes up to 3 GiB of memory."""
    snr_db: float | None = None
    """Choose it for a link: received Es/N0 [dB], with --bandwidth-hz and --deadline-s."""
    bandwidth_hz: float | None = None
    """Bandwidth of that link [Hz]."""
    deadline_s: float | None = None
    """Time in which the file has to arrive over that link [s]."""
    rate_model: str = "awgn"
    """How SNR becomes rate: awgn (Shannon), or what 5G NR gets through, nr_64qam or nr_256qam."""
    planned: bool = False
    """For a run and a budget or link: choose the rank and the step of each projection together, by
    the gains that the run has learned, instead of one step for all."""
    measure: bool = False
    """Run the model: coarser steps where weights matter less, and in the file what loss and
    accuracy each prefix reaches on the validation texts, of answers alone where they have any. Of a
    language model's plain texts it is the divergence from the adapter as it was. --texts implies
    it."""
    initial_adapter: Path | None = None
    """Folder of the adapter as it was before training. Where the initialisation changed the base
    model (PiSSA, OLoRA, CorDA, LoRA-GA), the difference to it is packed."""
    embeddings: bool = False
    """Accept embeddings and output layers that were saved in full, which are most of a file."""
    previous: Path | None = None
    """File of the version that devices have, whose steps and chunks are taken, so that an update
    from it is small (rankcast publish makes it)."""
    keep_within: float = 0.5
    """With --previous: steps from its old place within which a weight is left there. 0.5 rounds as
    ever; 0.75 makes updates of nearly nothing, and leaves out most of what training changed."""
    texts: Annotated[Texts, tyro.conf.arg(name="")] = field(default_factory=Texts)
    json: bool = False
    """Print what was written as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the file and print its size."""
        from rankcast.cli.console import PassProgress, stderr

        check_free(self.output)
        costs: list[Cost] = []
        with closing(PassProgress(stderr())) as progress:
            container = self._packed(costs.append, progress.on_pass)
        (cost,) = costs
        with disk_errors(self.output):
            put_file(self.output, container.to_bytes())
        if self.json:
            print_json(self._described(container, cost))
        else:
            print(self._words(container, cost))
        return 0

    def _packed(self, on_cost: Callable[[Cost], None], on_pass: OnPass) -> Container:
        """Return the file as the options say."""
        from rankcast.packaging.pack import pack

        measure = self.measure or self.texts.texts is not None
        on_hub = measure and not Path(self.texts.base_model or ".").is_dir()
        return pack(
            self.adapter,
            quality=self.quality,
            budget_bits=self._budget_bits(),
            target_bytes=self.target_bytes,
            planned=self.planned,
            measure=measure,
            texts=self.texts if measure else None,
            base_model=None if on_hub else self.texts.base_model,
            initial_adapter=self.initial_adapter,
            embeddings=self.embeddings,
            previous=self.previous,
            keep=self.keep_within,
            level_texts=self.level_texts,
            curvature_texts=self.curvature_texts,
            on_cost=on_cost,
            on_pass=on_pass,
        )

    def _described(self, container: Container, cost: Cost) -> dict[str, Any]:
        """Return what was written, for machines."""
        from rankcast.codec.header import measure_of
        from rankcast.packaging.pack import given_bits

        header, given = container.header, given_bits(self.adapter)
        reason = why_general(header)
        return {
            "file": str(self.output),
            "form": "low-rank" if reason is None else "general",
            "general_because": reason,
            "bits": container.n_bits,
            "bits_in_float32": header.float32_bits,
            "bits_given": None if given is None else given[1],
            "times_smaller": header.float32_bits / container.n_bits,
            "chunks": len(container.chunks),
            "tensors": len(header.modules),
            "mean_rank": mean_rank(container.tensors()),
            "measure": measure_of(header.task),
            "loss": header.chunks[-1].loss,
            "accuracy": header.chunks[-1].accuracy,
            "loss_before": cost.loss,
            "accuracy_before": cost.accuracy,
            "lost_energy": cost.lost_energy,
        }

    def _words(self, container: Container, cost: Cost) -> str:
        """Return what was written, for people."""
        from rankcast.packaging.pack import given_bits

        header, n_bits, given = container.header, container.n_bits, given_bits(self.adapter)
        smaller = _beside(header.float32_bits, n_bits, "float32")
        if given is not None:
            smaller = f"{_beside(given[1], n_bits, given[0])}, {smaller}"
        n = len(container.chunks)
        size = f"{n_bits // 8:,} bytes in {n} {'chunk' if n == 1 else 'chunks'}, {smaller}"
        reason = why_general(header)
        if reason is None:
            form = f"mean rank {mean_rank(container.tensors()):.2f}"
        else:
            form = f"packed in general form because {reason}: {len(header.modules)} tensors"
        lost = _lost(container, cost)
        if cost.lost_energy and self._budget_bits() is None and self.target_bytes is None:
            lost += " Finer: --quality fine, or --budget-bits." if self.quality != "fine" else ""
        return f"{self.output}: {size}, {form}.{lost} See rankcast info {self.output}"

    def _budget_bits(self) -> float | None:
        """Return how many bits the file may have; None if the options do not say.

        Raises:
            ConfigError: options that say the same thing twice, or half a link.
        """
        snr_db, bandwidth_hz, deadline_s = self.snr_db, self.bandwidth_hz, self.deadline_s
        is_link = any(x is not None for x in (snr_db, bandwidth_hz, deadline_s))
        wishes = self.quality, self.budget_bits, self.target_bytes
        if sum(wish is not None for wish in wishes) + is_link > 1:
            raise ConfigError(
                "Give one of --quality, --budget-bits, --target-bytes and a link, not several."
            )
        if not is_link:
            return self.budget_bits
        if snr_db is None or bandwidth_hz is None or deadline_s is None:
            raise ConfigError("A link needs --snr-db, --bandwidth-hz and --deadline-s.")
        from rankcast.packaging.pack import link_budget_bits

        return link_budget_bits(snr_db, bandwidth_hz, deadline_s, self.rate_model)


def _lost(container: Container, cost: Cost) -> str:
    """Return a sentence on what a file loses beside the adapter, after a space."""
    from rankcast.codec.header import measure_of

    parts, entry = [], container.header.chunks[-1]
    if cost.lost_energy is not None and entry.loss is None:  # else the loss says more
        parts.append(f"{cost.lost_energy:.1%} of the update's energy is lost")
    if entry.loss is not None and measure_of(container.header.task) == "divergence":
        parts.append(f"divergence from the adapter {entry.loss:.4f} nats per token")
    if None not in (cost.loss, cost.accuracy, entry.loss, entry.accuracy):
        parts.append(
            f"loss {cost.loss:.3f} -> {entry.loss:.3f}, "
            f"accuracy {cost.accuracy:.1%} -> {entry.accuracy:.1%}"
        )
    return f" {'; '.join(parts).capitalize()}." if parts else ""


def _beside(before_bits: float, n_bits: int, what: str) -> str:
    """Return how much smaller a file is than something else, or larger."""
    times = before_bits / n_bits
    word = "smaller" if times >= 1 else "larger"
    times = max(times, 1 / times) if times else math.inf
    return f"{times:.{0 if times >= 10 else 1}f} times {word} than {what}"
