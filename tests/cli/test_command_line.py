"""What the command line does with names, pipes and errors; no command really runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from helpers.commands import Call
from rankcast import __version__
from rankcast.cli.common import logs_json, refuse_both
from rankcast.cli.main import GROUPS, RENAMED
from rankcast.cli.presets import Presets
from rankcast.errors import ConfigError

RANKCAST = (sys.executable, "-m", "rankcast")


@pytest.fixture
def presets_raise(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `rankcast presets` fail."""

    def prepare(error: BaseException) -> None:
        def run(command: Presets, argv: Sequence[str]) -> int:
            raise error

        monkeypatch.setattr(Presets, "run", run)

    return prepare


def test_the_version_and_the_module_can_be_called() -> None:
    done = subprocess.run([*RANKCAST, "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == f"rankcast {__version__}\n"


def test_without_a_command_the_commands_are_shown(call: Call) -> None:
    status, out, err = call()
    assert (status, err) == (0, "")
    assert all(f"{title}:" in out for title in GROUPS)


@pytest.mark.parametrize("old", RENAMED)
def test_old_commands_answer_with_their_new_name(old: str, call: Call) -> None:
    status, out, err = call(old, "anything")
    assert (status, out) == (2, "")
    assert err.startswith("rankcast: ")
    assert f"is now `{'' if old == 'experiment' else 'rankcast '}{RENAMED[old]}`" in err


@pytest.mark.parametrize(
    ("typed", "new"),
    [
        (("qat", "runs/demo", "-o", "out", "--bit-weight", "1e-6"), "--rate-weight"),
        (("qat", "runs/demo", "-o", "out", "--bit-weight=1e-6"), "--rate-weight"),
        (("serve", "--store", "store", "--open"), "--no-auth"),
        (("edge", "watch", "--json"), "--log-format json"),
    ],
)
def test_old_options_answer_with_their_new_name(
    typed: tuple[str, ...], new: str, call: Call
) -> None:
    status, out, err = call(*typed)
    assert (status, out) == (2, "")
    assert f"is now `{new}`" in err


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        (("pakc",), "'pack'"),
        (("allocat", "--run", "x"), "'allocate'"),
        (("keys", "rotat"), "'rotate'"),
        (("allocate", "--run", "x", "--snr-bd", "5"), "'--snr-db'"),
        (("allocate", "--run", "x", "--snr-db", "5", "--deadlines", "1"), "'--deadline-s'"),
        (("pack", "adapter", "-o", "x.rcast", "--qualty=fine"), "'--quality'"),
        (("keys", "init", "--kesy", "x", "--store", "y"), "'--keys'"),
    ],
)
def test_typos_name_the_nearest(typed: tuple[str, ...], nearest: str, call: Call) -> None:
    status, out, err = call(*typed)
    assert (status, out) == (2, "")
    assert f"did you mean {nearest}?" in err
    assert "Traceback" not in err


def test_words_that_belong_to_no_option_are_refused(call: Call) -> None:
    err = call.refused("presets", "tiny", "demo")
    assert "demo" in err


@pytest.mark.parametrize("command", ["", "train", "serve", "keys"])
def test_a_reader_that_has_seen_enough_ends_help_quietly(command: str) -> None:
    program = subprocess.Popen(  # noqa: S603
        [*RANKCAST, *command.split(), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    program.stdout.close()
    assert program.communicate()[1] == b""
    assert program.returncode == 0


def test_an_output_that_lacks_a_sign_or_is_closed_is_no_failure() -> None:
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*RANKCAST, "--help"], capture_output=True, env=variables, check=True)  # noqa: S603
    assert b"rankcast COMMAND \\u2026" in done.stdout
    closed = ["sh", "-c", '"$@" >&-', "sh", *RANKCAST, "presets", "tiny"]
    done = subprocess.run(closed, stderr=subprocess.PIPE, check=True)  # noqa: S603
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("No such thing."), "No such thing."),
        (PermissionError(13, "Permission denied", "out.rcast"), "out.rcast: Permission denied."),
        (OSError(28, "No space left on device"), "No space left on device."),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "'rankcast[train]'"),
        (ModuleNotFoundError("No module", name="uvicorn.loops"), "'rankcast[serve]'"),
    ],
)
def test_errors_end_in_one_sentence(
    error: Exception, sentence: str, presets_raise: Any, call: Call
) -> None:
    presets_raise(error)
    status, out, err = call("presets")
    assert (status, out) == (2, "")
    assert err.startswith("rankcast: ")
    assert sentence in err
    assert err.count("\n") == 1
    err = call.refused("presets", "--debug")
    assert "Traceback" in err
    assert sentence in err


def test_a_missing_module_of_no_extra_is_a_fault_of_ours(presets_raise: Any) -> None:
    presets_raise(ModuleNotFoundError("No module named 'nonsense'", name="nonsense"))
    from rankcast.cli.main import main

    with pytest.raises(ModuleNotFoundError):
        main(["presets"])


def test_an_interruption_has_its_own_status(presets_raise: Any, call: Call) -> None:
    presets_raise(KeyboardInterrupt())
    assert call("presets") == (130, "", "rankcast: interrupted.\n")


def test_logs_are_json_where_no_person_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logs_json("json")
    assert not logs_json("text")
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=is_terminal: answer, raising=False)
        assert logs_json("auto") is not is_terminal


def test_options_that_exclude_each_other() -> None:
    refuse_both(token=None, token_file="file", ask=False)  # noqa: S106
    with pytest.raises(ConfigError, match="one of --token and --token-file, not both"):
        refuse_both(token="word", token_file="file")  # noqa: S106
