"""Options from a dataclass: tyro, with metavars, help and errors as rankcast wants them."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Union, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from rankcast.errors import ConfigError, nearest

NOTHING = ("none", "null")
"""Words for None, where a setting of a preset is to be taken away."""


def parse_options(cls: type[Any], args: Sequence[str], prog: str, default: Any = None) -> Any:
    """Return what was typed as a dataclass.

    Args:
        cls: its fields are the options, their docstrings the help.
        args: what was typed after `prog`.
        prog: the command, for help and errors.
        default: values of what is not typed; those of the class if left out.

    Raises:
        ConfigError: no such option; names the nearest.
        SystemExit: help was asked for, or options are missing or make no sense; tyro has said so.
    """
    parse = partial(
        tyro.cli,
        cls,
        prog=prog,
        description="",  # _print_help words it, with examples apart
        default=tyro.MISSING_NONPROP if default is None else default,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName),
        registry=_registry(),
    )
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            command, unknown = parse(args=args)
    except SystemExit as stop:
        if stop.code:
            hint = _unknown_option(parse, prog, args)
            sys.stderr.write(f"rankcast: {hint}\n" if hint else "")
        else:
            _print_help(cls, printed.getvalue())
        raise
    if unknown:
        unknown_option = _unknown_option(parse, prog, args)
        raise ConfigError(unknown_option or f"{prog} does not know what to do with {unknown[0]!r}.")
    return command


def _print_help(cls: type[Any], text: str) -> None:
    if not text.startswith("usage:"):  # a completion script, which tyro prints likewise
        print(text, end="")
        return
    usage, _, options = text.partition("\n")
    options = options.replace("show this help message and exit", "Show this help.")
    if len(usage) > shutil.get_terminal_size().columns:
        head, helps, rest = usage.partition("[-h]")
        usage = head + helps + re.sub(r" \[?--?[a-z].*", " [OPTIONS]", rest)
    for line in (usage, "", _described(cls), *options.splitlines()):
        print(line.rstrip())


def summary(cls: type[Any]) -> str:
    """Return the sentence that a command's docstring begins with."""
    return " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())


def command_list(commands: Mapping[str, type[Any]]) -> list[str]:
    """Return names and sentences, as lines for help."""
    indent = " " * (4 + max(map(len, commands)))
    return [
        line
        for name, cls in commands.items()
        for line in _wrap(summary(cls), f"  {name}".ljust(len(indent)), indent)
    ]


def group_help(cls: type[Any], prog: str) -> str:
    """Return the help of a command that has sub-commands, such as `rankcast keys`."""
    lines = [f"usage: {prog} COMMAND …", "", _described(cls), "", "commands:"]
    lines += [*command_list(cls.COMMANDS), "", f"See {prog} COMMAND --help."]
    return "\n".join(lines)


def _described(cls: type[Any]) -> str:
    """Return a command's docstring, wrapped to the terminal, with its examples together."""
    text, was_example = "", False
    for paragraph in (inspect.getdoc(cls) or "").split("\n\n"):
        is_example = paragraph.startswith(("rankcast ", "python3 "))
        lines = _wrap(paragraph, "  ", "      ") if is_example else _wrap(paragraph, "", "")
        text += ("\n" if is_example and was_example else "\n\n") + "\n".join(lines)
        was_example = is_example
    return text.strip("\n")


def _wrap(text: str, first: str, further: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width=shutil.get_terminal_size().columns,
        initial_indent=first,
        subsequent_indent=further,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _unknown_option(parse: Callable[..., Any], prog: str, args: Sequence[str]) -> str:
    """Say which option that was typed there is not, and which may have been meant."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        parse(args=["--help"])
    known = sorted(set(re.findall(r"--[a-z][\w.-]*", printed.getvalue())))
    for word in (arg.partition("=")[0] for arg in args):
        if word.startswith("--") and word not in known:
            alike = [option for option in known if option.endswith(f".{word[2:]}")]
            hint = f"; did you mean {' or '.join(alike)}?" if alike else nearest(word, known)
            return f"{prog.removeprefix('rankcast ')} has no option {word}{hint or '.'}"
    return ""


def _registry() -> ConstructorRegistry:
    registry = ConstructorRegistry()
    registry.primitive_rule(_optional)
    registry.primitive_rule(_true_or_false)
    registry.primitive_rule(_number)
    registry.struct_rule(_plain_help(registry))
    return registry


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Show `T | None` as T; `none` and `null` stand for None."""
    options = get_args(info.type)
    if get_origin(info.type) not in (Union, types.UnionType) or types.NoneType not in options:
        return None
    inner = tuple(option for option in options if option is not types.NoneType)
    union: Any = Union[inner]  # noqa: UP007 the options are a tuple
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(union, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None

    def read(args: list[str]) -> Any:
        is_nothing = len(args) == 1 and args[0].lower() in NOTHING
        return None if is_nothing else spec.instance_from_str(args)

    return replace(
        spec,
        instance_from_str=read,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: (
            [NOTHING[0]] if value is None else spec.str_from_instance(value)
        ),
    )


def _true_or_false(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read a setting that is true or false as YAML does, in any case of letters."""
    if info.type is not bool:
        return None
    words = {"true": True, "false": False}

    def read(args: list[str]) -> bool:
        if args[0].lower() not in words:
            raise ValueError(f"true or false is wanted, got {args[0]!r}")
        return words[args[0].lower()]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{true,false}",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    )


def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Show 3500000000.0 as 3.5e+09."""
    if info.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda args: float(args[0]),
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [min(f"{value:g}", str(value), key=len)],
    )


def _plain_help(
    registry: ConstructorRegistry,
) -> Callable[[StructTypeInfo], StructConstructorSpec | None]:
    """Return a rule that words the help of fields as rankcast wants it."""
    inside: list[StructTypeInfo] = []

    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if inside:
            return None  # this call comes from below: the rule of tyro itself is wanted
        inside.append(info)
        try:
            spec = registry.get_struct_spec(info)
        finally:
            inside.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        flags = hasattr(info.type, "run")  # what is true or false in a command, not in settings
        return replace(spec, fields=tuple(_worded(field, flags) for field in spec.fields))

    return rule


def _worded(field: StructFieldSpec, flags: bool) -> StructFieldSpec:
    """Make a sentence of a field's help, hide a default that is nothing, and let -o mean output."""
    field_type: Any = field.type
    if field.default is None or field.default == () or (flags and field.default is False):
        field_type = Annotated[field_type, tyro.conf.arg(help_behavior_hint="")]
    if field.name == "output":
        field_type = Annotated[field_type, tyro.conf.arg(aliases=["-o"])]

    def text() -> str | None:
        words = field.helptext() if callable(field.helptext) else field.helptext
        sentence = " ".join((words or "").split())
        return (sentence[:1].upper() + sentence[1:]).replace("`", "")

    return replace(field, type=field_type, helptext=text)
