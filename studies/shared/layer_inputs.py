"""What comes into each layer of a model, so that a change in one runs the later ones alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

Inputs = list[tuple[Tensor, tuple[Any, ...], Mapping[str, Any]]]
"""For each layer the states that came in, and its other arguments."""


@contextmanager
def recorded(layers: list[Any]) -> Iterator[Inputs]:
    """Take down what comes into every layer."""
    into: Inputs = []

    def take(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        del layer
        states = args[0] if args else kwargs["hidden_states"]
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        into.append((states, args[1:], rest))

    hooks = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in layers]
    try:
        yield into
    finally:
        for hook in hooks:
            hook.remove()
