"""Send as much of a LoRA adapter as is worth it over the radio link of this moment.

The names below are the public surface. They are imported when they are first used, so that
`import rankcast` itself needs neither torch nor NumPy.

| name | what it does |
|---|---|
| `pack(adapter, …)` | codes a PEFT adapter into a `Container` |
| `load(path)` | reads a `Container` from a `.rcast` file |
| `Container` | a coded adapter: its ladder, its prefixes, its exports |
| `train(config)` | trains adapters and the policy that allocates their ranks |
| `train_to_size(config)` | trains one adapter whose file has at most so many bytes |
| `load_policy(run)` | reads a trained policy, which answers with a plan for each link |
| `EdgeClient` | keeps an adapter on a device up to date |
| `RankcastCallback` | lets the ranks of an adapter follow the link in a transformers `Trainer` |
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankcast.version import __version__

if TYPE_CHECKING:
    from rankcast.codec.container import Container, load
    from rankcast.edge.sync import EdgeClient
    from rankcast.packaging.pack import pack
    from rankcast.training.byte_run import train_to_size
    from rankcast.training.callback import RankcastCallback
    from rankcast.training.planner import load_policy
    from rankcast.training.run import train

__all__ = [
    "Container",
    "EdgeClient",
    "RankcastCallback",
    "__version__",
    "load",
    "load_policy",
    "pack",
    "train",
    "train_to_size",
]

_HOMES = {
    "Container": "rankcast.codec.container",
    "EdgeClient": "rankcast.edge.sync",
    "RankcastCallback": "rankcast.training.callback",
    "load": "rankcast.codec.container",
    "load_policy": "rankcast.training.planner",
    "pack": "rankcast.packaging.pack",
    "train": "rankcast.training.run",
    "train_to_size": "rankcast.training.byte_run",
}
"""Where each name is defined (PEP 562)."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankcast' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})
