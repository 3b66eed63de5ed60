"""An adapter over 1 Mbit/s with 5 % of the packets lost: `rankcast edge sync` beside its copy.

The copy is the same adapter's float32 file by one HTTP request, which is what scp would send. Both
go over the same emulated link (namespaces of Linux' network, or a proxy where these are not
permitted), taking turns. The losses of the kernel have no seed. The adapter has the shapes of rank
8 on MiniLM and random weights, so that it codes no better than a trained one.

`python benchmarks/test_lossy_link.py` writes `results/lossy_link.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "lossy_link.json"
TESTS = str(Path(__file__).parents[1] / "tests")
ROUNDS, SEED, RANK = 7, 0, 8
WIDTHS = ((384, 384), (384, 384), (384, 384), (384, 384), (384, 1536), (1536, 384)) * 6
GET = (
    "import httpx2, sys, time\n"
    "start = time.perf_counter()\n"
    "allowed = {'Authorization': 'Bearer ' + sys.argv[2]}\n"
    "answer = httpx2.get(sys.argv[1], timeout=120, headers=allowed).raise_for_status()\n"
    "print(time.perf_counter() - start, len(answer.content))\n"
)


def test_a_coded_adapter_arrives_before_its_float32_copy() -> None:
    sys.path.insert(0, TESTS)
    from helpers.lossy_links import WAYS, why_no_namespaces
    from studies.report.statistics import t_interval

    way = "kernel" if why_no_namespaces() is None else "proxy"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cloud = _published(folder)
        with WAYS[way](cloud["store"], cloud["database"]) as link:
            rounds = [_round(folder, cloud, link, n) for n in range(ROUNDS)]
    logs = np.log([r["copy_s"] / r["sync_s"] for r in rounds])
    found = t_interval(logs)
    walls = t_interval(np.log([r["copy_wall_s"] / r["sync_wall_s"] for r in rounds]))
    result = {
        "link": {"rate_bps": 1e6, "loss": 0.05, "way": way},
        "coded_bytes": cloud["coded_bytes"],
        "float32_bytes": cloud["float32_bytes"],
        "rounds": rounds,
        "times_faster": [float(np.exp(x)) for x in (found.value, found.low, found.high)],
        "times_faster_with_start_and_proof": [
            float(np.exp(x)) for x in (walls.value, walls.low, walls.high)
        ],
        "seed": SEED,
        "versions": {p: version(p) for p in ("httpx2", "tuf", "uvicorn")}
        | {"python": sys.version.split()[0]},
        "command": "python benchmarks/test_lossy_link.py",
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    assert found.low > 0.0


def _round(folder: Path, cloud: dict[str, Any], link: Any, n: int) -> dict[str, float]:
    """Sync a new device, and copy the float32 file."""
    start = time.perf_counter()
    done = link.run(
        "edge", "sync", "--server", link.url, "--adapter", "demo", "--base-fingerprint", "0" * 64,
        "--folder", str(folder / f"device-{n}"), "--token", cloud["token"], "--json",
        "--root", str(cloud["store"] / "metadata" / "root.json"), "--deadline-s", "600",
    )  # fmt: skip
    sync_wall_s = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    synced = json.loads(done.stdout)
    assert len(synced["release"]["blobs"]) == cloud["n_blobs"]
    start = time.perf_counter()
    url = f"{link.url}/blobs/{cloud['float32'][:2]}/{cloud['float32']}"
    copied = subprocess.run(  # noqa: S603 - our own words, no shell
        [*link.on_device, sys.executable, "-c", GET, url, cloud["reader"]],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    copy_wall_s = time.perf_counter() - start
    copy_s, n_bytes = copied.stdout.split()
    assert int(n_bytes) == cloud["float32_bytes"]
    return {
        "sync_s": synced["elapsed_s"],
        "copy_s": float(copy_s),
        "sync_wall_s": sync_wall_s,
        "copy_wall_s": copy_wall_s,
    }


def _published(folder: Path) -> dict[str, Any]:
    from helpers.codec import random_adapter
    from rankcast.codec.formats.peft import write_peft
    from rankcast.codec.header import BaseModel
    from rankcast.codec.packing import Source
    from rankcast.packaging.pack import pack
    from rankcast.release.ceremony import init_keys
    from rankcast.release.keys import KeyFolder
    from rankcast.release.publish import publish
    from rankcast.release.store import Store
    from rankcast.server.registry import Registry

    tensors = random_adapter(SEED, WIDTHS, (RANK,) * len(WIDTHS))
    source = Source(tensors, BaseModel("shapes of MiniLM", "0" * 64), {})
    container = pack(source, quality="good")
    write_peft(tensors, folder / "float32")
    store, keys, now = Store(folder / "store"), KeyFolder(folder / "keys"), datetime.now(UTC)
    init_keys(keys, store, now)
    manifest = publish([container], "demo", store, keys, now)
    plain = store.put((folder / "float32" / "adapter_model.safetensors").read_bytes())
    database = f"sqlite:///{folder}/devices.db"
    with closing(Registry(database)) as registry:
        token = registry.add("pi", "device")
        reader = registry.add("copy", "device")
    return {
        "store": store.root, "database": database, "token": token, "reader": reader,
        "coded_bytes": len(container.to_bytes()), "n_blobs": len(manifest.blobs),
        "float32": plain.sha256, "float32_bytes": plain.n_bytes,
    }  # fmt: skip


if __name__ == "__main__":
    test_a_coded_adapter_arrives_before_its_float32_copy()
