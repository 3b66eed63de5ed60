"""`rankcast unpack`: a `.rcast` file, or what has arrived of it, becomes an adapter for PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rankcast.cli.common import check_free, mean_rank
from rankcast.files import disk_errors


@dataclass(frozen=True)
class Unpack:
    """Write a file, or its first chunks, as an adapter for PEFT: a LoRA, or what it was.

    rankcast unpack demo.rcast -o adapters/demo

    rankcast unpack arrived-so-far.rcast -o adapters/demo --prefix

    See rankcast export for other formats.
    """

    file: tyro.conf.Positional[Path]
    """File that rankcast pack wrote."""
    output: Path
    """Folder to write."""
    chunks: int | None = None
    """Use so many chunks; all of them if left out."""
    prefix: bool = False
    """Accept a file that was cut short or damaged, and use the chunks before that."""
    overwrite: bool = False
    """Replace files in a folder that is not empty."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the folder."""
        from rankcast.codec.container import load

        whole = load(self.file, prefix=self.prefix or self.chunks is not None)
        used = whole if self.chunks is None else whole.prefix(self.chunks)
        tensors = used.tensors()
        check_free(self.output, overwrite=self.overwrite)
        with disk_errors(self.output):
            used.export("peft", self.output, tensors=tensors)
        rank, chunks = (
            mean_rank(tensors),
            f"{len(used.chunks)} of {len(whole.header.chunks)} chunks",
        )
        if rank is None:
            form = f"general form ({tensors.config['peft_type']}), {len(tensors.shapes)} tensors"
            print(f"{self.output}: {form} of {chunks}.")
        else:
            print(f"{self.output}: plain LoRA of {chunks}, mean rank {rank:.2f}.")
        return 0
