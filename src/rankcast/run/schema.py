"""Nested frozen dataclasses from plain mappings, with errors that name the nearest key."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from rankcast.errors import ConfigError, nearest

T = TypeVar("T")


def build(cls: type[T], raw: Mapping[str, Any], path: str = "") -> T:
    """Return a dataclass from a mapping; settings that are left out keep their default.

    A string where something else is wanted is read as YAML, so that what was typed on a command
    line and what stands in a file mean the same.

    Args:
        cls: the dataclass.
        raw: names to values; nested mappings for nested dataclasses.
        path: where `raw` stands, for messages.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or one out of its range.
    """
    _check_mapping(raw, path)
    hints = get_type_hints(cls)
    for key in raw:
        if key not in hints:
            full = {f"{path}{name}" for name in hints}
            hint = nearest(f"{path}{key}", full)
            raise ConfigError(f"There is no setting '{path}{key}'{hint or '.'}")
    values = {key: _convert(hints[key], value, f"{path}{key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{path.rstrip('.')}: {error}" if path else str(error)) from error


def dotted_keys(cls: Any, path: str = "") -> Iterator[str]:
    """Yield the full name of every setting of a dataclass and of those nested in it."""
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from dotted_keys(hint, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def check_key(cls: Any, key: str) -> None:
    """Refuse a full name that no setting has.

    Raises:
        ConfigError: names the settings that may have been meant.
    """
    known = list(dotted_keys(cls))
    if key in known:
        return
    leaf = key.rpartition(".")[2]
    meant = [name for name in known if name.rpartition(".")[2] == leaf]
    if meant:
        raise ConfigError(f"There is no setting {key!r}; did you mean {' or '.join(meant)}?")
    hint = nearest(key, known)
    raise ConfigError(f"There is no setting {key!r}{hint or '.'}")


def to_plain(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested dictionaries of what YAML and JSON can hold."""
    plain: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            plain[field.name] = to_plain(value)
        else:
            plain[field.name] = _plain_list(value)
    return plain


def _plain_list(value: Any) -> Any:
    """Return tuples, and tuples in them, as lists."""
    return [_plain_list(item) for item in value] if isinstance(value, tuple) else value


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


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Return a value as the type that a setting wants."""
    if is_dataclass(hint):
        return build(hint, value, f"{path}.")  # pyright: ignore[reportArgumentType]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if types.NoneType in options and value in ("null", "none", "None"):
        return None
    converted, fits = _fit(options, value)
    if fits:
        return converted
    raise ConfigError(f"{path} must be {' or '.join(map(_words, options))}, got {value!r}.")


def _fit(options: tuple[Any, ...], value: Any) -> tuple[Any, bool]:
    """Return the value, or what its text says, as the first type that it fits."""
    for candidate in (value, _read(value)) if isinstance(value, str) else (value,):
        for option in options:
            converted, fits = _as(option, candidate)
            if fits:
                return converted, True
    return None, False


def _as(option: Any, value: Any) -> tuple[Any, bool]:
    """Return the value as one type, and whether it is one."""
    if get_origin(option) is Literal:
        return value, value in get_args(option)
    if get_origin(option) is tuple:
        items, inner = _items(value), get_args(option)
        right_length = items is not None and (inner[-1] is ... or len(items) == len(inner))
        found = [_fit(inner[:1], item) for item in items or ()]
        return tuple(item for item, _ in found), right_length and all(ok for _, ok in found)
    if option is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (float(value), True) if is_number else (None, False)
    if option is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    return value, isinstance(value, option)


def _items(value: Any) -> list[Any] | None:
    """Return a list as it is, `a,b` or `[a, b]` as one, a lone number or word as one of one."""
    if isinstance(value, str):
        value = value if value.startswith("[") else f"[{value}]"
        value = _read(value)
    if isinstance(value, (int, float)):
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else None


def _read(text: str) -> Any:
    """Read a string as YAML; also `1e-3`, which YAML 1.1 takes for a word."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return text


def _words(option: Any) -> str:
    """Name a type for a person."""
    if get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, get_args(option)))
    if get_origin(option) is tuple:
        inner = get_args(option)
        count = "" if inner[-1] is ... else f" of {len(inner)}"
        return f"a list{count}, each {_words(inner[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "null" if option is types.NoneType else names.get(option, str(option))


def _check_mapping(raw: Any, path: str) -> None:
    """Refuse anything but a mapping."""
    if not isinstance(raw, Mapping):
        where = path.rstrip(".") or "The configuration"
        raise ConfigError(f"{where} must hold settings by name, got {raw!r}.")
