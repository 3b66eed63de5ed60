"""Rate models by the name that a configuration gives them.

| name | parameters |
|---|---|
| `awgn` | |
| `rayleigh_ergodic`, `rician_ergodic`, `nakagami_ergodic` | `k_factor` of Rician, `m` of Nakagami |
| `rayleigh_outage`, `rician_outage`, `nakagami_outage` | the same and `epsilon` |
| `truncated_shannon` | `efficiency`, `gap_db`, `largest` |
| `nr_64qam`, `nr_256qam` | `bandwidth_hz`, `impl_loss_db` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rankcast.errors import ConfigError, nearest
from rankcast.link.capacity import Awgn, Ergodic, Outage, RateModel, TruncatedShannon
from rankcast.link.gains import Fading, Nakagami, Rayleigh, Rician
from rankcast.link.nr import Carrier, McsTable


@dataclass(frozen=True, slots=True)
class _Maker:
    """What a name takes, in the order of its builder's arguments, and the builder."""

    wanted: tuple[str, ...]
    build: Callable[..., RateModel]


def _nr(table: McsTable) -> Callable[[float, float], RateModel]:
    def build(bandwidth_hz: float, impl_loss_db: float) -> RateModel:
        from rankcast.link.abstraction import NrLink, NrRate  # noqa: PLC0415 reads tables

        return NrRate(NrLink(Carrier.for_bandwidth(bandwidth_hz), table, impl_loss_db))

    return build


def _makers() -> Mapping[str, _Maker]:
    fadings: Mapping[str, tuple[Callable[..., Fading], tuple[str, ...]]] = {
        "rayleigh": (Rayleigh, ()),
        "rician": (Rician, ("k_factor",)),
        "nakagami": (Nakagami, ("m",)),
    }
    found = {"awgn": _Maker((), Awgn)}
    for name, (fading, wanted) in fadings.items():
        found[f"{name}_ergodic"] = _Maker(wanted, lambda *p, of=fading: Ergodic(of(*p)))
        found[f"{name}_outage"] = _Maker(
            (*wanted, "epsilon"), lambda *p, of=fading: Outage(of(*p[:-1]), p[-1])
        )
    found["truncated_shannon"] = _Maker(("efficiency", "gap_db", "largest"), TruncatedShannon)
    for table in ("64qam", "256qam"):
        found[f"nr_{table}"] = _Maker(("bandwidth_hz", "impl_loss_db"), _nr(table))
    return found


_MAKERS = _makers()
RATE_MODELS: tuple[str, ...] = tuple(_MAKERS)
"""The names that `rate_model` understands."""


def parameters_of(name: str) -> tuple[str, ...]:
    """Return what a rate model takes.

    Raises:
        ConfigError: unknown name.
    """
    if name not in _MAKERS:
        raise ConfigError(
            f"There is no rate model {name!r}{nearest(name, RATE_MODELS)}. "
            f"Known: {', '.join(RATE_MODELS)}."
        )
    return _MAKERS[name].wanted


def rate_model(name: str, **params: float) -> RateModel:
    """Build a rate model from its name in a configuration.

    Args:
        name: one of `RATE_MODELS`.
        **params: all that the table at the top of this module has for it.

    Raises:
        ConfigError: unknown name; a parameter missing, unknown or not a number.
        LinkError: a parameter outside its range.
    """
    wanted = parameters_of(name)
    for key, value in params.items():
        if key not in wanted:
            takes = ", ".join(wanted) or "no parameters"
            raise ConfigError(f"Rate model {name!r} takes {takes}, not {key!r}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key!r} of rate model {name!r} must be a number, got {value!r}.")
    missing = [key for key in wanted if key not in params]
    if missing:
        raise ConfigError(f"Rate model {name!r} needs {', '.join(missing)}.")
    return _MAKERS[name].build(*(params[key] for key in wanted))
