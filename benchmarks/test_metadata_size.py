"""How many bytes a device fetches to learn whether there is anything new.

A store with 1, 100, 10,000 adapters, whose list of releases is whole or in bins; a device that
looks for the first time, when nothing changed, after another adapter was published, and after its
own was. Bytes of files, without HTTP's heads. Entries of most adapters are made up, of the length
that real ones have. Run it alone with `python benchmarks/test_metadata_size.py`; what came out lies
in `results/metadata_size.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.releases import NOW, Counting, Publisher, container, device, new_publisher
from rankcast.release.ceremony import LIFETIMES
from rankcast.release.keys import ROLES
from rankcast.release.publish import publish
from rankcast.release.repository import Repository, Signers, Signing
from rankcast.release.store import target_path

if TYPE_CHECKING:
    from rankcast.release.bins import Divide

RESULTS = Path(__file__).parent / "results" / "metadata_size.json"
N_ADAPTERS = (1, 100, 10_000)
FORMS: dict[str, Divide] = {"one list": "never", "as published": "auto"}


def fill(made: Publisher, n_adapters: int, divide: Divide) -> None:
    """Publish one adapter, and sign entries like its own for the others."""
    publish([container()], "adapter-00000", made.store, made.keys, NOW, divide=divide)
    repository = Repository.load(made.store)
    entry = repository.target(target_path("adapter-00000"))
    assert entry is not None
    entries = {}
    for number in range(1, n_adapters):
        path = target_path(f"adapter-{number:05}")
        entries[path] = type(entry).from_dict(entry.to_dict(), path)
    root = repository.root.signed
    signers: Signers = {role: made.keys.signers(root, role) for role in ROLES[1:]}
    repository.with_targets(entries, divide).write(made.store, Signing(signers, NOW, LIFETIMES))


def bytes_of_looks(folder: Path, n_adapters: int, divide: Divide) -> dict[str, float]:
    made = new_publisher(folder)
    fill(made, n_adapters, divide)
    counting = Counting()
    source, found = device(made, folder / "device", fetcher=counting), {}

    def release(seed: int, name: str) -> float:
        began_s = time.perf_counter()
        publish([container(seed)], name, made.store, made.keys, NOW, divide=divide)
        return time.perf_counter() - began_s

    def look(what: str) -> None:
        counting.n_bytes = 0
        source.manifest("adapter-00000")
        found[what] = counting.n_bytes

    look("first")
    look("nothing_new")
    seconds = release(1, "adapter-00000")
    look("own_adapter_is_new")
    release(1, "another")
    look("another_adapter_is_new")
    return {**found, "bins": len(Repository.load(made.store).bins), "publish_s": round(seconds, 2)}


def measure(n_adapters: tuple[int, ...] = N_ADAPTERS) -> dict[str, Any]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    with patch("os.fsync"), tempfile.TemporaryDirectory() as folder:
        for form, divide in FORMS.items():
            for n in n_adapters:
                place = Path(folder) / f"{divide}-{n}"
                place.mkdir()
                found.setdefault(form, {})[str(n)] = bytes_of_looks(place, n, divide)
    return {"bytes": found, "command": "python benchmarks/test_metadata_size.py"}


def test_looking_costs_little() -> None:
    found = measure((1, 100))["bytes"]
    whole, published = found["one list"], found["as published"]
    assert published["1"]["bins"] == 0
    for what in ("first", "nothing_new", "own_adapter_is_new", "another_adapter_is_new"):
        assert abs(published["1"][what] - whole["1"][what]) < 10  # lengths of numbers
    assert published["100"]["nothing_new"] < 1000
    assert published["100"]["another_adapter_is_new"] < 6000


if __name__ == "__main__":
    measured = measure()
    RESULTS.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    print(json.dumps(measured, indent=2))
