"""`rankcast presets`: what there is to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class Presets:
    """List the presets, or print every setting of one.

    rankcast presets

    rankcast presets demo > mine.yaml
    """

    name: tyro.conf.Positional[str | None] = None
    """A preset or YAML file; rankcast train takes any of its settings as an option."""

    def run(self, argv: Sequence[str]) -> int:
        """Print names with descriptions, or YAML."""
        from rankcast.presets import load_preset, preset_names, to_yaml

        if self.name is None:
            for name, description in preset_names().items():
                print(f"{name:12} {description}")
        else:
            print(to_yaml(load_preset(self.name)), end="")
        return 0
