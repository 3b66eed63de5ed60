"""Memory and time that a small device takes for a large adapter: 42 million numbers.

    python benchmarks/large_adapter.py
    python benchmarks/large_adapter.py --before OLD/src

The LoRA of `test_adapter_memory.py` (rank 16 on every projection of Llama 3's 8B shape) is packed,
and a version of it that moved by 5 % of its spread is packed as its successor. Then a device looks
at the file, checks it, unpacks it for PEFT, exports it for llama.cpp, fetches and activates it in a
folder, and fetches and activates the next version by an update. Each job runs in a process of its
own with one thread. Memory is the most that the process held (VmHWM, so on Linux only), with Python
and its libraries; beside it what was written into the folder of temporary files, which on many
devices is memory, too. Seconds are of the processor. Results lie in `results/large_adapter.json`;
with `--before`, those of another checkout, too, which otherwise stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
RESULTS = Path(__file__).parent / "results" / "large_adapter.json"
MOVED = 0.05
"""Root mean square of what training changed, beside the spread of a tensor."""
MOST_BYTES = 300_000_000
"""That a device's job may hold in memory and temporary files."""
BASE = "0" * 64
CALLS = {
    "pack": "rankcast.pack({lora!r}, quality='good').save({file!r})",
    "pack_next": "rankcast.pack({next_lora!r}, previous={file!r}).save({next_file!r})",
    "info": "cli('info', {file!r})",
    "verify": "cli('verify', {file!r})",
    "unpack": "cli('unpack', {file!r}, '--output', {out!r})",
    "export_gguf": (
        "cli('export', {file!r}, '--format', 'gguf', '--base-model', {base!r}, '-o', {gguf!r})"
    ),
}
SYNCS = {"sync": 1, "sync_by_update": 2}
SYNC = """EdgeClient(
    {url!r}, "demo", {base_fingerprint!r}, Path({folder!r}) / "state", Source(),
    WriteAdapter("peft", Path({folder!r}) / "adapter"), settings=SyncSettings(deadline_s=600.0),
).sync()"""
CHILD = """
import contextlib, io, json, os, sys, tempfile, time
from pathlib import Path
import rankcast
from rankcast.cli.main import main
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.sync import EdgeClient, SyncSettings
from rankcast.release.manifest import Manifest
def cli(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(words))
        except SystemExit as left:
            assert not left.code, words
class Source:
    def manifest(self, name):
        return Manifest.from_bytes(Path({manifest!r}).read_bytes())
spooled, file_of = [], tempfile.TemporaryFile
import rankcast.codec.spool as spool
class Noted:
    def __init__(self):
        self._file = file_of()
        self.seek, self.tell, self.readinto = self._file.seek, self._file.tell, self._file.readinto
        self.close = self._file.close
    def write(self, data):
        spooled.append(len(memoryview(data).cast("B")))
        return self._file.write(data)
spool.TemporaryFile = Noted
start = time.process_time()
outcome = {call}
seconds = time.process_time() - start
(line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
peak = int(line.split()[1]) * 1024
found = {{"peak_bytes": peak, "temporary_bytes": sum(spooled), "processor_seconds": seconds}}
if hasattr(outcome, "outcome"):
    assert outcome.outcome == "activated", outcome
    found |= {{"received_bytes": outcome.n_bytes, "update": outcome.update}}
print(json.dumps(found))
"""


def write_moved(source: Path, target: Path, seed: int) -> None:
    """Write an adapter whose tensors moved a little."""
    from benchmarks.test_adapter_memory import write_bfloat16
    from rankcast.codec.formats.tensor_file import TensorFile

    rng = np.random.default_rng(seed)
    file = TensorFile.open(source / "adapter_model.safetensors")
    left = iter(file.entries)

    def drawn(shape: tuple[int, ...]) -> NDArray[Any]:
        values = file.array(next(left))
        return values + MOVED * values.std() * rng.standard_normal(shape, np.float32)

    target.mkdir()
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    write_bfloat16(target / "adapter_model.safetensors", shapes, drawn)
    config = (source / "adapter_config.json").read_bytes()
    (target / "adapter_config.json").write_bytes(config)


def child(source: Path, call: str, manifest: Path) -> dict[str, Any]:
    """Return what a call took in a process of its own."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(  # noqa: S603 our own interpreter
        [sys.executable, "-c", CHILD.format(call=call, manifest=str(manifest))],
        env=os.environ | threads | {"PYTHONPATH": str(source)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(source: Path, folder: Path) -> dict[str, Any]:
    """Return what each job takes with the package in `source`."""
    from helpers.edge import serving

    place = folder / source.parent.name
    place.mkdir()
    names = {
        name: str(place / name) for name in ("file", "next_file", "out", "gguf")
    } | {name: str(folder / name) for name in ("lora", "next_lora", "base")}  # fmt: skip
    found = {}
    with serving(place) as server:
        for what, call in CALLS.items():
            found[what] = child(source, call.format(**names), server.manifest_file)
        older: list[Any] = []
        for (what, number), file in zip(SYNCS.items(), ("file", "next_file"), strict=True):
            older.append(server.publish(adapter_of(names[file]), version=number, older=older))
            call = SYNC.format(url=server.url, base_fingerprint=BASE, folder=str(place / "device"))
            found[what] = child(source, call, server.manifest_file)
    found["pack"]["file_bytes"] = Path(names["file"]).stat().st_size
    return found


def adapter_of(file: str) -> Any:
    """Return the file, of the base model that the device has."""
    import rankcast
    from rankcast.codec.header import BaseModel

    container = rankcast.load(file)
    header = dataclasses.replace(container.header, base=BaseModel("llama", BASE))
    return dataclasses.replace(container, header=header)


def run(before: Path | None = None) -> Mapping[str, Any]:
    """Measure and keep the result."""
    from benchmarks.test_adapter_memory import N_LAYERS, write_adapter, write_config

    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        n_numbers = write_adapter(folder / "lora", seed=0)
        write_moved(folder / "lora", folder / "next_lora", seed=1)
        write_config(folder / "base", N_LAYERS)
        result = {
            "numbers": n_numbers,
            "input_bytes": (folder / "lora" / "adapter_model.safetensors").stat().st_size,
            "before": kept.get("before") if before is None else measure(before.resolve(), folder),
            "after": measure(ROOT / "src", folder),
            "device": f"{platform.machine()}, one thread",
            "versions": {"python": platform.python_version(), "numpy": version("numpy")},
            "command": "python benchmarks/large_adapter.py",
        }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    found = run(parser.parse_args().before)
    for what, row in found["after"].items():
        held = (row["peak_bytes"] + row["temporary_bytes"]) / 1e6
        print(f"{what:15} {held:6.0f} MB {row['processor_seconds']:6.1f} s")
    of_device = [row for what, row in found["after"].items() if not what.startswith("pack")]
    most = max(row["peak_bytes"] + row["temporary_bytes"] for row in of_device)
    sys.exit(most > MOST_BYTES)
