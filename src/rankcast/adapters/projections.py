"""Which linear maps of a transformer can carry an adapter, in a fixed order (Eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from rankcast.errors import ConfigError, ModelError, nearest
from rankcast.naming import ORDER, kind_of
from rankcast.records import AdapterLayout, Projection


def find_projections(
    model: nn.Module, kinds: Sequence[str] | None = None, r_max: int = 8
) -> AdapterLayout:
    """Return the projections of every layer of `model`, layer by layer, q, k, v, o, fc1, fc2.

    A projection is a linear map inside a numbered list of layers. Its kind is one of the paper's
    words where the architecture's name for it is known, and the last part of its name where not.
    Encoder layers come before decoder layers and are numbered through.

    Args:
        model: a transformer, with or without a PEFT wrapper around it.
        kinds: kinds to keep; None keeps all.
        r_max: largest rank of each adapter.

    Raises:
        ModelError: the model has no linear map inside a numbered list of layers.
        ConfigError: a kind that the model does not have, or `r_max` below 1.
    """
    if r_max < 1:
        raise ConfigError(f"r_max must be at least 1, got {r_max}.")
    projections = _discover(model)
    if not projections:
        raise ModelError(
            f"{type(model).__name__} has no linear projection inside a numbered list of layers, "
            f"so there is nothing to adapt. Give it a transformer such as BERT, OPT or Llama."
        )
    if kinds is not None:
        projections = _keep(projections, (kinds,) if isinstance(kinds, str) else tuple(kinds))
    return AdapterLayout(projections=tuple(projections), r_max=r_max)


def _keep(projections: list[Projection], kinds: tuple[str, ...]) -> list[Projection]:
    """Return the projections whose kind was asked for."""
    known = tuple(dict.fromkeys(p.kind for p in projections))
    for kind in kinds:
        if kind not in known:
            raise ConfigError(
                f"This model has no projection of kind {kind!r}{nearest(kind, known)}. "
                f"It has {', '.join(known)}."
            )
    if not kinds:
        raise ConfigError(f"No kind of projection was asked for. The model has {', '.join(known)}.")
    return [p for p in projections if p.kind in kinds]


def _discover(model: nn.Module) -> list[Projection]:
    """Return every linear map inside a numbered list of layers, in order."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    assert isinstance(base, nn.Module)
    layers: dict[str, int] = {}
    projections: list[Projection] = []
    for name, d_in, d_out in _linear_maps(base):
        layer = _layer_of(base, name)
        if layer is None:
            continue
        index = layers.setdefault(layer, len(layers))
        projections.append(Projection(name, index, kind_of(name), d_in, d_out))
    place = {kind: i for i, kind in enumerate(ORDER)}
    return sorted(projections, key=lambda p: (p.layer, place.get(p.kind, len(place))))


def _linear_maps(base: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield name and widths of each linear map; one wrapped by PEFT goes by its own name."""
    for name, module in base.named_modules():
        if ".lora_" in name or name.endswith(".base_layer"):
            continue
        width = _widths(getattr(module, "base_layer", module))
        if width is not None:
            yield name, *width


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear map, None for any other module."""
    nx, nf = getattr(module, "nx", None), getattr(module, "nf", None)
    if isinstance(nx, int) and isinstance(nf, int):  # transformers' Conv1D, weight (d_in, d_out)
        return nx, nf
    linear = isinstance(module, nn.Linear) or "Linear" in type(module).__name__  # or quantised
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if linear and isinstance(d_in, int) and isinstance(d_out, int):
        return d_in, d_out
    return None


def _layer_of(base: nn.Module, name: str) -> str | None:
    """Return the path of the numbered layer around `name`, None outside any list of layers."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit() and i:
            parent = base.get_submodule(".".join(parts[:i]))
            if isinstance(parent, nn.ModuleList | nn.Sequential):
                return ".".join(parts[: i + 1])
    return None
