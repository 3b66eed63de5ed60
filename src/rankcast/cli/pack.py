"""`rankcast pack`: an adapter becomes a `.rcast` file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rankcast.cli.common import print_json
from rankcast.errors import ConfigError
from rankcast.files import put_file
from rankcast.packaging.texts import Texts


@dataclass(frozen=True)
class Pack:
    """Code an adapter into one small file whose prefixes are adapters.

    rankcast pack runs/demo -o demo.rcast

    rankcast pack my-peft-lora -o my.rcast --budget-bits 200000

    rankcast pack runs/demo -o demo.rcast --snr-db 5 --bandwidth-hz 1e5 --deadline-s 1

    rankcast pack runs/demo -o demo.rcast --measure

    Takes runs of rankcast, and LoRA and AdaLoRA adapters that PEFT saved. Needs torch only to
    measure. For the fewest bytes, rankcast qat comes first.
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
    accuracy each prefix reaches on the validation texts. --texts implies it."""
    texts: Annotated[Texts, tyro.conf.arg(name="")] = field(default_factory=Texts)
    json: bool = False
    """Print what was written as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the file and print its size."""
        from rankcast.packaging.pack import pack

        container = pack(
            self.adapter,
            quality=self.quality,
            budget_bits=self._budget_bits(),
            planned=self.planned,
            measure=self.measure,
            texts=None if self.texts.texts is None and not self.measure else self.texts,
        )
        put_file(self.output, container.to_bytes())
        header, n_bits = container.header, container.n_bits
        smaller, mean_rank = header.float32_bits / n_bits, float(container.tensors().ranks.mean())
        if self.json:
            print_json(
                {
                    "file": str(self.output),
                    "bits": n_bits,
                    "bits_in_float32": header.float32_bits,
                    "times_smaller": smaller,
                    "chunks": len(container.chunks),
                    "mean_rank": mean_rank,
                    "loss": header.chunks[-1].loss,
                    "accuracy": header.chunks[-1].accuracy,
                }
            )
        else:
            print(
                f"{self.output}: {n_bits // 8:,} bytes in {len(container.chunks)} chunks, "
                f"{smaller:.0f} times smaller than float32, mean rank {mean_rank:.2f}. "
                f"See rankcast info {self.output}"
            )
        return 0

    def _budget_bits(self) -> float | None:
        """Return how many bits the file may have; None if the options do not say.

        Raises:
            ConfigError: options that say the same thing twice, or half a link.
        """
        snr_db, bandwidth_hz, deadline_s = self.snr_db, self.bandwidth_hz, self.deadline_s
        is_link = any(x is not None for x in (snr_db, bandwidth_hz, deadline_s))
        if (self.quality is not None) + (self.budget_bits is not None) + is_link > 1:
            raise ConfigError("Give one of --quality, --budget-bits and a link, not several.")
        if not is_link:
            return self.budget_bits
        if snr_db is None or bandwidth_hz is None or deadline_s is None:
            raise ConfigError("A link needs --snr-db, --bandwidth-hz and --deadline-s.")
        from rankcast.packaging.pack import link_budget_bits

        return link_budget_bits(snr_db, bandwidth_hz, deadline_s, self.rate_model)
