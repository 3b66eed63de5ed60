"""`rankcast export`: an adapter for PEFT, vLLM, llama.cpp, or merged into its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rankcast.cli.common import OptionalRun, check_free
from rankcast.errors import ConfigError
from rankcast.files import disk_errors


@dataclass(frozen=True)
class Export:
    """Write an adapter for PEFT, vLLM or llama.cpp, or merge it.

    rankcast export a.rcast -o adapters/a

    rankcast export a.rcast --format gguf --base-model models/llama -o a.gguf

    rankcast export --run runs/demo --snr-db 5 -o adapters/at-5-db

    From a file of rankcast pack; or from a run, whose plan for a link is written as a LoRA for
    PEFT.
    """

    output: Path
    """Folder or, for gguf, file to write."""
    file: tyro.conf.Positional[Path | None] = None
    """File that rankcast pack wrote."""
    format: Literal["peft", "vllm", "gguf", "merged"] = "peft"
    """Format: peft (a LoRA with a rank for each projection), vllm (padded to one rank, as
    vLLM and SGLang need it), gguf (for llama.cpp) or merged (the whole model, which needs torch).
    """
    chunks: int | None = None
    """Use so many chunks of the file; all of them if left out."""
    prefix: bool = False
    """Accept a file that was cut short or damaged, and use the chunks before that."""
    overwrite: bool = False
    """Replace files in a folder that is not empty."""
    base_model: Path | None = None
    """Folder of the base model: for gguf (its config.json), for merged, whose folder has to be new,
    and where a module travels as a difference."""
    base_gguf: Path | None = None
    """GGUF of the base model: for gguf, instead of the folder. With both, the order of the rows is
    measured where it is not known what llama.cpp's converter does."""
    run_folder: OptionalRun = None
    """Folder of a trained run."""
    snr_db: float | None = None
    """Received Es/N0 [dB]; with --run."""
    bandwidth_hz: float | None = None
    """Bandwidth [Hz]; the run's own if left out."""
    deadline_s: float | None = None
    """Time in which the plan has to arrive [s]; the run's own if left out."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the adapter of a file, or of a run."""
        check_free(self.output, overwrite=self.overwrite)
        if self.file is not None and self.run_folder is None:
            print(self._export_file(self.file))
        elif self.run_folder is not None and self.file is None:
            print(self._export_run(self.run_folder))
        else:
            raise ConfigError("Name a file of rankcast pack to export, or a run with --run.")
        return 0

    def _export_file(self, file: Path) -> str:
        """Write the adapter of a file and return a line that says what was written."""
        from rankcast.codec.container import load
        from rankcast.packaging.export import export

        whole = load(file, prefix=self.prefix or self.chunks is not None)
        used = whole if self.chunks is None else whole.prefix(self.chunks)
        if self.base_gguf is not None and self.format != "gguf":
            raise ConfigError("--base-gguf is for --format gguf.")
        bases = {"base_model": self.base_model, "base_gguf": self.base_gguf}
        with disk_errors(self.output):
            tensors = export(used, self.format, self.output, **bases)
        what = {"gguf": "GGUF LoRA", "merged": "the model with the adapter merged in"}
        method = str(tensors.config.get("peft_type", "LoRA"))
        rank = f", mean rank {tensors.ranks.mean():.2f}" if tensors.projections else ""
        return (
            f"{self.output}: {what.get(self.format, method)}, of {len(used.chunks)} of "
            f"{len(whole.header.chunks)} chunks{rank}."
        )

    def _export_run(self, folder: Path) -> str:
        """Write a run's plan for a link and return a line that says what was written."""
        if self.snr_db is None or self.format != "peft":
            raise ConfigError(
                "A run is exported for a link: give --snr-db. For other formats than peft, "
                "rankcast pack it first."
            )
        from rankcast.packaging.export import export_run

        with disk_errors(self.output):
            plan = export_run(folder, self.output, self.snr_db, self.bandwidth_hz, self.deadline_s)
        return f"{self.output}: plain LoRA, mean rank {plan.ranks.mean():.2f}."
