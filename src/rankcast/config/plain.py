"""Settings as nested mappings, for YAML and JSON, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from rankcast.errors import ConfigError, RankcastError, nearest

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


def to_plain(config: Any) -> Any:
    """Return a dataclass as nested dictionaries, and tuples as lists."""
    if is_dataclass(config):
        return {part.name: to_plain(getattr(config, part.name)) for part in fields(config)}
    return [to_plain(item) for item in config] if isinstance(config, tuple) else config


def from_plain(cls: Callable[[], T], raw: Mapping[str, Any]) -> T:
    """Return a dataclass of settings; those that are left out keep their default.

    Args:
        cls: the dataclass; every field has a default.
        raw: names to values; nested mappings for nested dataclasses.

    Raises:
        ConfigError: an unknown name, with the nearest; a value of the wrong type or out of range.
    """
    from cattrs.errors import ClassValidationError  # noqa: PLC0415 only who reads settings needs it

    defaults = to_plain(cls())
    whole = _merged(defaults, raw, "", list(setting_names(defaults)))
    try:
        return _converter().structure(whole, cls)  # pyright: ignore[reportArgumentType]
    except ClassValidationError as error:
        path, reason = _first_reason(error)
        raise ConfigError(f"{path}{reason}") from error


def setting_names(plain: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the full name, such as `policy.ppo.clip`, of every setting in nested mappings."""
    for name, value in plain.items():
        if isinstance(value, Mapping):
            yield from setting_names(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> str:
    """Describe the first setting in which two plain configurations differ; empty if none does."""
    for key in [*one, *(key for key in other if key not in one)]:
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = first_difference(a, b, f"{path}{key}.")
            if inner:
                return inner
        elif a != b:
            return f"{path}{key} was {a!r} and is now {b!r}"
    return ""


def _merged(defaults: Mapping[str, Any], raw: Any, path: str, known: list[str]) -> dict[str, Any]:
    """Return the defaults with the given settings in their place."""
    if not isinstance(raw, Mapping):
        where = path.rstrip(".") or "The configuration"
        raise ConfigError(f"{where} must hold settings by name, got {raw!r}.")
    merged = dict(defaults)
    for name, value in raw.items():
        full = f"{path}{name}"
        nested = isinstance(defaults.get(name), Mapping)
        if name not in defaults:
            alike = [other for other in known if other.rpartition(".")[2] == name]
            hint = f"; did you mean {' or '.join(alike)}?" if alike else nearest(full, known)
            raise ConfigError(f"There is no setting {full!r}{hint or '.'}")
        merged[name] = _merged(defaults[name], value, f"{full}.", known) if nested else value
    return merged


def _first_reason(error: BaseException) -> tuple[str, str]:
    """Return the full name of the first setting that is wrong, and what is wrong with it."""
    path = ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
        for note in getattr(error, "__notes__", ()):
            name, index = getattr(note, "name", ""), getattr(note, "index", "")
            path += f".{name}" if name else f"[{index}]"
    out_of_range = ": " if path and isinstance(error, RankcastError) else " " if path else ""
    return path.lstrip(".") + out_of_range, str(error)


@cache
def _converter() -> Converter:
    """Return what turns plain values into settings, and refuses to guess."""
    from cattrs import Converter  # noqa: PLC0415 only who reads settings needs it

    converter = Converter()
    converter.register_structure_hook(bool, _strict(bool, "true or false"))
    converter.register_structure_hook(int, _strict(int, "a whole number"))
    converter.register_structure_hook(str, _strict(str, "text"))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_func(lambda hint: get_origin(hint) is Literal, _choice)

    @converter.register_structure_hook_factory(lambda hint: get_origin(hint) is tuple)
    def listed(hint: Any) -> Callable[[Any, Any], Any]:
        items, args = converter.get_structure_hook(list[get_args(hint)[0]]), get_args(hint)

        def structure(value: Any, _: Any) -> tuple[Any, ...]:
            if not isinstance(value, (list, tuple)):
                raise TypeError(f"must be a list, got {value!r}.")
            if args[-1] is not ... and len(value) != len(args):
                raise ValueError(f"must be a list of {len(args)}, got {value!r}.")
            return tuple(items(value, list[args[0]]))

        return structure

    return converter


def _strict(cls: type, words: str) -> Callable[[Any, Any], Any]:
    """Return what takes values of exactly one type."""

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not cls:
            raise TypeError(f"must be {words}, got {value!r}.")
        return value

    return structure


def _number(value: Any, _: Any) -> float:
    """Return a number; also from `1e-3`, which YAML 1.1 reads as text."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"must be a number, got {value!r}.")


def _choice(value: Any, hint: Any) -> Any:
    """Return one of the values of a `Literal`."""
    known = get_args(hint)
    if value not in known:
        hint_text = nearest(value, known) if isinstance(value, str) else ""
        words = ", ".join(map(str, known))
        raise ValueError(f"must be one of {words}, got {value!r}{hint_text or '.'}")
    return value
