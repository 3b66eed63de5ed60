"""What a user installs: the package without its studies, small enough to read, and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.models import randomise, tiny_model
from helpers.servers import files_over_http
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import save_adapter
from rankcast.adapters.fingerprint import base_fingerprint

ROOT = Path(__file__).parents[2]
MOST_LINES = 53_700


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(  # noqa: S603 our own words, no shell
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (file,) = folder.glob("*.whl")
    return file


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        sources = [name for name in names if name.endswith(".py")]
        n_lines = sum(archive.read(name).count(b"\n") for name in sources)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rankcast"}
    assert {"rankcast/py.typed", "rankcast/presets/demo.yaml", "rankcast/link/nr_bler.json"} < set(
        names
    )
    assert "rankcast/server/dashboard/index.html" in names
    assert "rankcast/codec/lean_dictionary.txt" in names
    assert n_lines <= MOST_LINES


def test_it_takes_an_adapter_from_a_folder_to_a_device(wheel: Path, tmp_path: Path) -> None:
    """Pack, publish and sync as a user would, with the wheel's code and no checkout in sight."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site)}

    def rankcast(*args: str) -> str:
        done = subprocess.run(  # noqa: S603 our own words, no shell
            [sys.executable, "-P", "-m", "rankcast", *args],
            cwd=tmp_path, env=env, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-P", "-c", "import rankcast; print(rankcast.__file__)"],
        cwd=tmp_path, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.strip() == str(site / "rankcast" / "__init__.py")

    model = tiny_model("bert")
    fingerprint = base_fingerprint(model)
    adapter = ElasticAdapter.attach(model, r_max=2)
    randomise(adapter, 0)
    save_adapter(adapter, tmp_path / "adapter")
    signing = ("--store", "store", "--keys", "keys")
    rankcast("pack", "adapter", "-o", "a.rcast")
    rankcast("keys", "init", *signing)
    rankcast("publish", "a.rcast", "--name", "demo", *signing)
    with files_over_http(tmp_path / "store") as server:
        rankcast(
            *("edge", "sync", "--server", server, "--adapter", "demo", "--folder", "device"),
            *("--base-fingerprint", fingerprint, "--root", "store/metadata/root.json"),
        )
    status = json.loads(rankcast("edge", "status", "--folder", "device", "--json"))
    assert status["active"]["version"] == 1
    assert (tmp_path / "device/adapter/current/adapter_model.safetensors").is_file()
