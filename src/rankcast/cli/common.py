"""Option types and small habits that every command shares.

Read before a command is understood: nothing heavy is imported here.

Conventions: an option `output`, also `-o`, names what is written; a file or an adapter folder to
work on is positional; a trained run is `--run DIR`; `--json` prints for machines what a person gets
as a table; `--debug` belongs to `rankcast` itself and is no field of a command.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import tyro

from rankcast.errors import ConfigError

if TYPE_CHECKING:
    from rankcast.codec.header import Header
    from rankcast.codec.tensors import AdapterTensors
    from rankcast.learner.protocol import Evaluation
    from rankcast.server.registry import Registry
    from rankcast.training.byte_run import SizedAdapter

INTERRUPTED = 130
"""Exit status of a command that was asked to stop."""

Run = Annotated[Path, tyro.conf.arg(name="run")]
"""Folder of a trained run: `--run`. The field has another name, since `run` is the method."""

OptionalRun = Annotated[Path | None, tyro.conf.arg(name="run")]
"""The same for a command that works on files, too."""

LogFormat = Literal["auto", "text", "json"]
"""How a command logs; auto is text at a terminal and JSON lines in a pipe or a file."""


def logs_json(log_format: LogFormat, stream: TextIO | None = None) -> bool:
    """Return whether log lines are JSON.

    Args:
        log_format: what was asked for.
        stream: where the lines go; standard error if left out.
    """
    if log_format == "auto":
        return not (sys.stderr if stream is None else stream).isatty()
    return log_format == "json"


def print_json(plain: Any) -> None:
    """Print a result for machines."""
    print(json.dumps(plain, indent=2))


def sized_words(result: SizedAdapter) -> str:
    """Say what a file of a given size came to, and what the size costs."""
    before, after = result.before, result.after
    earlier = zip(result.file.ladder, result.prefixes[:-1], strict=False)
    prefixes = "".join(f" Its first {p.n_bytes:,} bytes: {e.words}." for p, e in earlier)
    beside = ((x.file.n_bits // 8, x.after.words) for x in result.smaller)
    prefixes += "".join(f" A file of {n:,} bytes beside it: {words}." for n, words in beside)
    return (
        f"{result.file.n_bits // 8:,} bytes at rank {result.rank}. "
        f"{judged_words(before, after, 'in float32')}{prefixes}"
    )


def judged_words(before: Evaluation, after: Evaluation, was: str) -> str:
    """Say how held-out texts were answered before and are answered now, and if that is worse.

    Args:
        before: the adapter as it was.
        after: the adapter as decoded.
        was: what it was before, for people.
    """
    texts = f"On {after.n_examples:,} texts that were not trained on"
    if after.exact_match is None:
        words = (
            f"{texts} loss {before.loss:.3f} {was} -> {after.loss:.3f} as decoded, accuracy "
            f"{before.accuracy:.1%} -> {after.accuracy:.1%}."
        )
    else:
        words = f"{texts}, {was}: {before.words}; as decoded: {after.words}."
    rise = after.loss - before.loss
    if rise <= 0:
        return words
    return f"{words} The loss rose by {rise:.3f} nats: whether that is worth the bytes is yours."


def mean_rank(tensors: AdapterTensors) -> float | None:
    """Return the mean rank of an adapter's projections; None if it has none."""
    return float(tensors.ranks.mean()) if len(tensors.ranks) else None


def why_general(header: Header) -> str | None:
    """Return why an adapter is in general form; None if it is low-rank."""
    if "peft_type" not in header.config:
        return None
    from rankcast.codec.formats.peft_config import general_words

    return general_words(header.config, {m.name: m.shape for m in header.modules})


def refuse_both(**options: Any) -> None:
    """Refuse options of which at most one may be given.

    Args:
        options: names, with underscores, to values; None and False count as not given.

    Raises:
        ConfigError: more than one was given.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in options.items()
        if value is not None and value is not False
    ]
    if len(given) > 1:
        raise ConfigError(f"Give one of {' and '.join(given)}, not both.")


def check_free(output: Path, *, overwrite: bool = False) -> None:
    """Refuse to write where something is that rankcast pack did not write, unless it may be lost.

    Raises:
        ConfigError: a folder that is not empty, or a file of something else.
    """
    is_free = not any(output.iterdir()) if output.is_dir() else not output.exists()
    if output.is_file():
        with output.open("rb") as file:
            is_free = file.read(3) in (b"", b"\x89RC")
    if not is_free and not overwrite:
        raise ConfigError(
            f"{output} is there already and no file of rankcast pack: it stays. Name another with "
            f"-o; rankcast unpack and export write into it with --overwrite."
        )


def device_token(token: str | None, file: Path | None) -> str | None:
    """Return a device's token, from its file if one is named; None for an open server.

    Raises:
        ConfigError: both are given, or the file cannot be read.
    """
    refuse_both(token=token, token_file=file)
    if file is None:
        return token
    try:
        return file.read_text("utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}. Name the file with the token that rankcast "
            f"devices add printed, with --token-file."
        ) from error
    except UnicodeError as error:
        raise ConfigError(f"{file} holds no token: it is not text.") from error


def open_registry(database: str, *, makes: bool = False) -> Registry:
    """Return a server's database.

    Args:
        database: its address.
        makes: whether it may be new, which is said.

    Raises:
        ConfigError: there is no such file.
    """
    from rankcast.server.registry import Registry

    scheme, _, path = database.partition(":///")
    is_new = scheme == "sqlite" and not Path(path).exists()
    if is_new and not makes:
        raise ConfigError(f"There is no database {path}; name the server's with --database.")
    if is_new:
        words = "It is new: only a server with this --database lets these devices in."
        print(f"rankcast: {path}: {words}", file=sys.stderr)
    return Registry(database)


@contextmanager
def stop_on_signal(after: str = "this episode") -> Iterator[Callable[[], bool]]:
    """Yield a question "should we stop?" that the first Ctrl-C or SIGTERM answers with yes.

    A second one interrupts at once.

    Args:
        after: what is finished first, for people.
    """
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print(f"rankcast: stopping after {after}; once more to stop at once.", file=sys.stderr)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
