"""Rate models by the name that settings give them.

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
from typing import Any, get_args

from rankcast.config.link import LinkConfig, RateModelName
from rankcast.errors import ConfigError, check_choice
from rankcast.link.capacity import (
    Awgn,
    Ergodic,
    Fading,
    Nakagami,
    Outage,
    RateModel,
    Rayleigh,
    Rician,
    TruncatedShannon,
)
from rankcast.link.nr import Carrier

RATE_MODELS: tuple[str, ...] = get_args(RateModelName)
"""The names that `rate_model` understands."""
_FADINGS: Mapping[str, tuple[Callable[..., Fading], tuple[str, ...]]] = {
    "rayleigh": (Rayleigh, ()),
    "rician": (Rician, ("k_factor",)),
    "nakagami": (Nakagami, ("m",)),
}


def parameters_of(name: str) -> tuple[str, ...]:
    """Return what a rate model takes.

    Raises:
        ConfigError: unknown name.
    """
    check_choice("rate model", name, RATE_MODELS)
    family, _, kind = name.partition("_")
    if family in _FADINGS:
        return (*_FADINGS[family][1], *(("epsilon",) if kind == "outage" else ()))
    if family == "nr":
        return ("bandwidth_hz", "impl_loss_db")
    return ("efficiency", "gap_db", "largest") if name == "truncated_shannon" else ()


def fading_of(name: str, params: Mapping[str, float]) -> Fading:
    """Return a distribution of |h|² by its name, with those of the parameters that it takes."""
    make, taken = _FADINGS[name]
    return make(*(params[key] for key in taken))


def rate_model(name: str, bandwidth_hz: float | None = None, /, **params: float) -> RateModel:
    """Build a rate model from its name.

    Args:
        name: one of `RATE_MODELS`.
        bandwidth_hz: of the channel [Hz], where the model takes it; its implementation loss is then
            0 dB unless given.
        **params: all else that the table at the top of this module has for it.

    Raises:
        ConfigError: unknown name; a parameter missing, unknown or not a number.
        LinkError: a parameter outside its range.
    """
    wanted = parameters_of(name)
    if bandwidth_hz is not None and "bandwidth_hz" in wanted:
        params = {"bandwidth_hz": bandwidth_hz, "impl_loss_db": 0.0} | params
    for key, value in params.items():
        if key not in wanted:
            takes = ", ".join(wanted) or "no parameters"
            raise ConfigError(f"Rate model {name!r} takes {takes}, not {key!r}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key!r} of rate model {name!r} must be a number, got {value!r}.")
    missing = [key for key in wanted if key not in params]
    if missing:
        raise ConfigError(f"Rate model {name!r} needs {', '.join(missing)}.")
    family, _, kind = name.partition("_")
    if family == "nr":
        return _nr(kind, **params)
    if name == "truncated_shannon":
        return TruncatedShannon(**params)
    if family not in _FADINGS:
        return Awgn()
    fading = fading_of(family, params)
    return Outage(fading, params["epsilon"]) if kind == "outage" else Ergodic(fading)


def rate_model_of(link: LinkConfig) -> RateModel:
    """Return how SNR becomes rate on a configured link.

    Raises:
        ConfigError: unknown rate model.
        LinkError: a parameter outside its range.
    """
    wanted = parameters_of(link.rate_model)
    params = {name: value for name, value in vars(link.rate).items() if name in wanted}
    return rate_model(link.rate_model, link.bandwidth_hz, **params)


def _nr(table: Any, bandwidth_hz: float, impl_loss_db: float) -> RateModel:
    from rankcast.link.nr_link import NrLink, NrRate  # noqa: PLC0415 reads tables

    return NrRate(NrLink(Carrier.for_bandwidth(bandwidth_hz), table, impl_loss_db))
