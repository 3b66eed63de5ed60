"""`rankcast quickstart`: keys, releases, a server and a device on this machine; no torch."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from rankcast.cli.common import print_json, refuse_both
from rankcast.errors import ConfigError, DeliveryError

if TYPE_CHECKING:
    from rankcast.simulation.cloud import ServerProcess

_NEEDED = ("cachetools", "fastapi", "prometheus_client", "scipy", "sqlalchemy", "uvicorn")
"""What rankcast[serve] brings."""
_BASE, _FIRST, _SECOND = 0, 1, 2
"""Seeds of the made-up weights."""
_DEVICE_TOKEN, _OPERATOR_TOKEN, _LOG = "device.token", "operator.token", "server.log"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it is for.

    Attributes:
        title: for people.
        words: of the command, without `rankcast`.
        output: file that gets what it prints.
        stays: whether it runs until the end.
    """

    title: str
    words: tuple[str, ...]
    output: str | None = None
    stays: bool = False

    @property
    def command(self) -> str:
        """What a person would type in the folder."""
        redirected = "" if self.output is None else f" > {self.output}"
        return shlex.join(("rankcast", *self.words)) + redirected


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Deliver a small adapter to a device on this machine, and then its update.

    rankcast quickstart

    rankcast quickstart --open

    rankcast quickstart my-peft-lora --base-model models/llama

    rankcast quickstart --by-hand

    It makes keys, packs an adapter, publishes and serves it, lets a device fetch it over a narrow
    link, and publishes a second version of which the device fetches the difference. It shows each
    command as you would type it. Takes less than a minute, without GPU, torch or hub. Needs pip
    install 'rankcast[serve]'.
    """

    adapter: tyro.conf.Positional[Path | None] = None
    """Folder of an adapter that PEFT saved, or of a run; a made-up one if left out."""
    base_model: Path | None = None
    """Folder of the base model of an adapter that PEFT saved."""
    folder: Path = Path("quickstart")
    """New folder for everything."""
    port: int = 8080
    """Port of the server; the link has the next one. 0 for two that are free."""
    rate_bps: float = 64e3
    """Rate of the device's link [bit/s]."""
    open: bool = False
    """Open the dashboard in a browser as soon as the server runs."""
    keep_serving: Literal["auto", "yes", "no"] = "auto"
    """Whether to serve until Ctrl-C once all is done; auto does at a terminal."""
    by_hand: bool = False
    """Make the folder with base model and adapters, print the commands, and run none of them."""
    json: bool = False
    """Print what was done as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Do all of it, or print how."""
        began_s = time.monotonic()
        refuse_both(by_hand=self.by_hand, json=self.json)
        for name in _NEEDED:
            if find_spec(name) is None:
                raise ConfigError(
                    f"rankcast quickstart needs {name}: pip install 'rankcast[serve]'."
                )
        ports = _free_ports(self.port)
        with _interruptible(), _new_folder(self.folder) as folder:
            steps = self._steps(folder, *ports)
            if self.by_hand:
                print(_script(folder, steps, ports[0]))
                return 0
            with contextlib.chdir(folder), ExitStack() as stack:
                session = _Session(self, folder, ports, stack)
                session.do(steps)
                session.end(time.monotonic() - began_s)
        return 0

    def keeps_serving(self) -> bool:
        """Return whether to serve until Ctrl-C."""
        if self.keep_serving == "auto":
            return not self.json and sys.stdin.isatty() and sys.stdout.isatty()
        return self.keep_serving == "yes"

    def _steps(self, folder: Path, port: int, link_port: int) -> list[Step]:
        """Write what the commands begin with, and return them."""
        first, of_pack, of_device = self._adapters(folder)
        release = "--name", "demo", "--store", "store", "--keys", "keys"
        sync = (
            "edge", "sync", "--server", f"http://127.0.0.1:{link_port}", "--adapter", "demo",
            "--folder", "device", "--root", "store/metadata/root.json",
            "--token-file", _DEVICE_TOKEN, *of_device,
        )  # fmt: skip
        link = "--port", str(link_port), "--to-port", str(port), "--rate-bps"
        return [
            Step("Code the adapter into one small file",
                 ("pack", first, "-o", "first.rcast", *of_pack)),
            Step("Make keys: devices take only what they have signed",
                 ("keys", "init", "--keys", "keys", "--store", "store")),
            Step("Sign the file as version 1", ("publish", "first.rcast", *release)),
            Step("Let a device in", ("devices", "add", "device-1"), _DEVICE_TOKEN),
            Step("Let yourself in, to the dashboard", ("devices", "add", "me", "--operator"),
                 _OPERATOR_TOKEN),
            Step("Serve the store", ("serve", "--store", "store", "--port", str(port)), stays=True),
            Step("Put a narrow link before it", ("link", "proxy", *link, f"{self.rate_bps:.12g}"),
                 stays=True),
            Step("The device fetches, verifies and activates version 1", sync),
            Step("Code what further training made of it, as its successor",
                 ("pack", "next", "-o", "second.rcast", "--previous", "first.rcast", *of_pack)),
            Step("Sign that as version 2", ("publish", "second.rcast", *release)),
            Step("The device fetches only the difference", sync),
            Step("What it has now", ("edge", "status", "--folder", "device")),
        ]  # fmt: skip

    def _adapters(self, folder: Path) -> tuple[str, list[str], list[str]]:
        """Write both versions; return the first, and how pack and the device name the base model.

        Raises:
            CodecError: no adapter.
            ConfigError: a base model that is not known.
        """
        from rankcast.packaging.pack import adapter_folder, read_adapter
        from rankcast.simulation import made_up

        if self.adapter is None:
            if self.base_model is not None:
                raise ConfigError("Name the adapter of that base model, too, or leave both out.")
            made_up.write_base_model(folder / "base", _BASE)
            made_up.write_adapter(folder / "first", _FIRST)
            made_up.write_next_adapter(folder / "first", folder / "next", _SECOND)
            return "first", ["--base-model", "base"], ["--base-model", "base"]
        known, base_model = read_adapter(self.adapter).base, self.base_model
        if base_model is None and known.fingerprint is None:
            base_model = Path(known.name or "")
            if not known.name or not base_model.is_dir():
                raise ConfigError(
                    f"{self.adapter} is of {known.name or 'a model that it does not name'}, and "
                    f"there is no such folder here: name the base model's with --base-model."
                )
        made_up.write_next_adapter(adapter_folder(self.adapter), folder / "next", _SECOND)
        adapter = str(self.adapter.resolve())
        if base_model is None:
            return adapter, [], ["--base-fingerprint", str(known.fingerprint)]
        base = ["--base-model", str(base_model.resolve())]
        return adapter, base, base


@dataclass
class _Session:
    """Runs the steps in the folder; the stack ends what stays.

    Attributes:
        options: of the command.
        folder: where it runs.
        ports: of server and link.
        stack: ends server and link.
        done: steps, for machines.
        server: once it was started.
    """

    options: Quickstart
    folder: Path
    ports: tuple[int, int]
    stack: ExitStack
    done: list[dict[str, Any]] = field(default_factory=list)
    server: ServerProcess | None = None

    def do(self, steps: Sequence[Step]) -> None:
        """Run the steps, and show them."""
        self._say(f"Everything lies in {self.folder}. To repeat a command, go there first:")
        self._say(f"$ {shlex.join(('cd', str(self.folder)))}")
        for number, step in enumerate(steps, 1):
            self._say(f"\n{number}. {step.title}.\n$ {step.command}")
            output = self._start(step) if step.stays else self._run(step)
            self.done.append({"title": step.title, "command": step.command, "output": output})

    def end(self, elapsed_s: float) -> None:
        """Say what there is now, and serve on if that is wanted."""
        options, adapter = self.options, self.folder / "device" / "adapter" / "current"
        address, keeps = f"http://127.0.0.1:{self.ports[0]}", options.keeps_serving()
        if options.json:
            print_json(
                {
                    "folder": str(self.folder), "adapter": str(adapter), "dashboard": address,
                    "operator_token": str(self.folder / _OPERATOR_TOKEN), "server": address,
                    "link": f"http://127.0.0.1:{self.ports[1]}", "seconds": elapsed_s,
                    "steps": self.done,
                }
            )  # fmt: skip
        self._say(f"\nDone in {elapsed_s:.0f} s after start-up. The device's adapter: {adapter}")
        if not keeps:
            again = f"cd {shlex.quote(str(self.folder))} && {self.done[5]['command']}"
            self._say(f"Server and link have ended. To bring the dashboard back: {again}")
        token = (self.folder / _OPERATOR_TOKEN).read_text("utf-8").strip()
        self._say(f"The dashboard: {address} It asks for a token: {token}")
        if options.adapter is None:
            self._say("With your own: rankcast quickstart MY-LORA --base-model MODEL --folder mine")
        if not keeps:
            return
        self._say(f"Serving until Ctrl-C; the log is {self.folder / _LOG}")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            assert self.server is not None
            self.server.wait()
            raise DeliveryError(f"The server has ended; {self.folder / _LOG} may say why.")

    def _say(self, text: str) -> None:
        if not self.options.json:
            print(text, flush=True)

    def _run(self, step: Step) -> Any:
        """Run a command in this process; return what it printed for machines."""
        from rankcast.cli.main import parse
        from rankcast.files import put_file

        is_captured = self.options.json or step.output is not None
        words = [*step.words, "--json"] if self.options.json and not step.output else step.words
        out = io.StringIO()
        with contextlib.redirect_stdout(out) if is_captured else contextlib.nullcontext():
            status = parse(words).run(["rankcast", *words])
        if status:
            raise DeliveryError(f"`{step.command}` ended with {status}. {out.getvalue()}".strip())
        if step.output is not None:
            put_file(Path(step.output), out.getvalue().encode(), 0o600)
            return None
        return json.loads(out.getvalue()) if is_captured else None

    def _start(self, step: Step) -> None:
        """Start a command that stays."""
        from rankcast.cli.link import LinkProxy
        from rankcast.cli.main import parse
        from rankcast.simulation.cloud import ServerProcess

        command = parse(step.words)
        if isinstance(command, LinkProxy):
            port = self.stack.enter_context(command.listening())
            self._say(f"Listening on http://127.0.0.1:{port}, {command.rate_bps:,.0f} bit/s.")
            return
        self.server = ServerProcess(step.words[1:], Path(_LOG))
        self.stack.callback(self.server.stop)
        address = f"http://127.0.0.1:{self.server.port}"
        self._say(f"Listening on {address}; the dashboard is there, too.")
        if self.options.open and not webbrowser.open(address):
            print(f"rankcast: no browser could be started; open {address}", file=sys.stderr)


def _script(folder: Path, steps: Sequence[Step], port: int) -> str:
    """Return the commands as a person types them, with comments."""
    lines = [shlex.join(("cd", str(folder)))]
    for step in steps:
        stays = " Leave it running, and go on in another terminal, in the same folder."
        lines += ["", f"# {step.title}.{stays if step.stays else ''}", step.command]
    end = f"The dashboard: http://127.0.0.1:{port}, with the token in {_OPERATOR_TOKEN}."
    return "\n".join([*lines, "", f"# {end}"])


def _free_ports(port: int) -> tuple[int, int]:
    """Return the ports of server and link.

    Raises:
        ConfigError: no such port.
        DeliveryError: one of them is taken.
    """
    if not 0 <= port < 2**16 - 1:
        raise ConfigError(f"--port lies between 0 and {2**16 - 2}, got {port}.")
    found = []
    with ExitStack() as stack:
        for number in (0, 0) if port == 0 else (port, port + 1):
            try:
                sock = stack.enter_context(socket.create_server(("127.0.0.1", number)))
            except OSError as error:
                raise DeliveryError(
                    f"Port {number} cannot be used: {error.strerror}. Choose others with --port; "
                    f"--port 0 takes two that are free."
                ) from error
            found.append(int(sock.getsockname()[1]))
    return found[0], found[1]


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that is empty; it is removed again after an error or an interruption.

    Raises:
        ConfigError: it is not empty.
    """
    existed, folder = folder.exists(), folder.absolute()
    if existed and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is there already. Remove it (rm -r {shlex.quote(str(folder))}), or name "
            f"another with --folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed:
            folder.rmdir()
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first signal to end interrupt, and the next ones not disturb the tidying up."""
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
