"""How far a reader goes from a command to what it does: package functions and files on the way.

    python benchmarks/call_paths.py            # this tree
    python benchmarks/call_paths.py OLD/src    # another one

A command is run once. On the way to each first effect outside the package (a file that is renamed,
an HTTP request, a call of the TUF client, a call of the entropy coder; for `train` the first step
of the environment) the call stack is noted. The numbers are the distinct functions of the package
on those stacks, and the files that they lie in. `results/call_paths.json` holds this tree and the
one before ADR 13.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "call_paths.json"
ENTROPY_CODER = ("encode_reverse", "get_compressed")


class Paths:
    """Notes the stack at the first of each kind of effect."""

    def __init__(self, source: Path, *, only_steps: bool) -> None:
        self.only_steps = only_steps
        self.package = f"{source.resolve()}/rankcast/"
        self.effects: set[str] = set()
        self.functions: dict[tuple[str, str], None] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Look at one call; what `sys.setprofile` takes."""
        effect = self._effect(frame, event, arg)
        if effect is None or effect in self.effects:
            return
        if self.only_steps and effect != "environment step":
            return
        self.effects.add(effect)
        caller: FrameType | None = frame
        while caller is not None:
            code = caller.f_code
            if code.co_filename.startswith(self.package) and not code.co_name.startswith("<"):
                self.functions[code.co_filename, code.co_qualname] = None
            caller = caller.f_back

    def _effect(self, frame: FrameType, event: str, arg: Any) -> str | None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event == "c_call":
            called = getattr(arg, "__name__", "")
            if called in ENTROPY_CODER:
                return called
            if called in ("replace", "rename") and getattr(arg, "__module__", "") == "posix":
                paths = (frame.f_locals.get(key) for key in ("dst", "target", "path"))
                return f"rename {next((Path(str(p)).name for p in paths if p), '?')[:12]}"
        elif event == "call":
            if name == "step" and file.startswith(f"{self.package}env/"):
                return "environment step"
            if "httpx2/_client.py" in file and name in ("stream", "request"):
                return f"http {str(frame.f_locals.get('url'))[:30]}"
            if "/tuf/" in file and name in ("refresh", "get_targetinfo", "download_target"):
                return f"tuf {name}"
        return None


def trace(source: Path, argv: list[str]) -> dict[str, int]:
    """Run a command in this process; return how many functions and files lie on its way."""
    sys.path.insert(0, str(source))
    from rankcast.cli import main

    if not callable(main):
        from rankcast.cli.main import main
    paths = Paths(source, only_steps=argv[0] == "train")
    threading.setprofile(paths)
    sys.setprofile(paths)
    try:
        main(argv)
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    functions = list(paths.functions)
    return {"functions": len(functions), "files": len({file for file, _ in functions})}


def traced(source: Path, folder: Path, *argv: str) -> dict[str, int]:
    """Trace a command in a process of its own."""
    done = subprocess.run(  # noqa: S603 our own words, no shell
        [sys.executable, "-P", __file__, "--trace", str(source.resolve()), *argv],
        cwd=folder, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(source.resolve())},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(source: Path) -> dict[str, dict[str, int]]:
    """Return the way of each command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = traced(source, folder, "train", "tiny", "--steps", "15", "--output", "run")
        pack = traced(source, folder, "pack", "run", "--output", "a.rcast")
        signing = ("--store", "store", "--keys", "keys")
        for command in (("keys", "init"), ("publish", "a.rcast", "--name", "tiny")):
            traced(source, folder, *command, *signing)
        info = subprocess.run(
            [sys.executable, "-P", "-c", "from rankcast.cli.main import main; main()",
             "info", "a.rcast", "--json"],
            cwd=folder, check=True, capture_output=True, text=True,
        )  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", "store"],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as server:  # fmt: skip
            assert server.stdout is not None
            port = server.stdout.readline().split("port ")[1].split()[0]
            sync = traced(
                source, folder, "edge", "sync", "--server", f"http://127.0.0.1:{port}",
                "--adapter", "tiny", "--folder", "device", "--root", "store/metadata/root.json",
                "--base-fingerprint", json.loads(info.stdout)["base_fingerprint"],
            )  # fmt: skip
            server.terminate()
    return {"train to the first step": train, "pack": pack, "edge sync": sync}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        print(json.dumps(trace(Path(sys.argv[2]), sys.argv[3:])))
    else:
        tree = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "src"
        measured = measure(tree)
        print(json.dumps(measured, indent=2))
        if not sys.argv[1:]:
            kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
            kept |= {"this tree": measured, "command": "python benchmarks/call_paths.py"}
            RESULTS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
