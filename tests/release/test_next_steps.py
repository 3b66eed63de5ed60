"""What publish and a refusal say to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from helpers.commands import Call
from helpers.releases import Publisher, device
from rankcast.cli.edge import EdgeSync
from rankcast.cli.main import parse
from rankcast.errors import DeliveryError, TrustError, UnavailableError
from rankcast.simulation.made_up import write_adapter, write_base_model


class Refusing(FetcherInterface):
    """Answers as a server that has revoked the token."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        words = "it does not accept this device's token: ask for another"
        raise DownloadHTTPError(f"{url}: HTTP status 401: {words}", 401)


def test_a_refused_token_comes_before_the_address(publisher: Publisher, tmp_path: Path) -> None:
    phone = replace(device(publisher, tmp_path / "device"), fetcher=Refusing())
    with pytest.raises(DeliveryError, match=r"^The server refused: it does not accept") as refused:
        phone.manifest("sst2")
    assert not isinstance(refused.value, TrustError | UnavailableError)
    assert "ask for another. What the device already has stays in use." in str(refused.value)


def test_the_command_that_publish_prints_can_be_pasted(tmp_path: Path, call: Call) -> None:
    write_base_model(tmp_path / "base", 0)
    write_adapter(tmp_path / "lora", 1)
    signing = ["--store", str(tmp_path / "store"), "--keys", str(tmp_path / "keys")]
    call.ok("keys", "init", *signing)
    words = [
        "publish",
        str(tmp_path / "lora"),
        "--base-model",
        str(tmp_path / "base"),
        "--no-proof",
    ]
    *_, line = call.ok(*words, "--name", "demo", *signing).splitlines()
    command = parse(shlex.split(line)[1:])
    assert isinstance(command, EdgeSync)
    assert (command.adapter, command.server) == ("demo", "http://SERVER:8080")
    assert (command.token_file, command.root) == (Path("TOKEN-FILE"), Path("root.json"))
