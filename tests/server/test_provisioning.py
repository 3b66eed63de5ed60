"""Many devices at once, by the commands: rankcast devices import, rotate, revoke, label."""

from __future__ import annotations

import csv
import json
import stat
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from rankcast.cli.main import parse
from rankcast.errors import ConfigError, DeliveryError
from rankcast.server.provisioning import NewDevice, Selection, import_devices, read_devices
from rankcast.server.registry import Registry

TABLE = """name,groups,time_zone
pi-1,eu canary,Europe/Berlin
pi-2,eu,
pi-3,,
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/devices.db"


def devices(url: str, *words: str) -> int:
    return parse(["devices", *words, "--database", url]).run([])


def tokens_in(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["token"] for row in csv.DictReader(file)}


def test_a_table_lets_devices_in_and_its_tokens_are_for_its_owner(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, tokens = tmp_path / "devices.csv", tmp_path / "tokens.csv"
    table.write_text(TABLE)
    assert devices(url, "import", str(table), "-o", str(tokens)) == 0
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    with closing(Registry(url)) as registry:
        assert [(d.name, d.groups, d.time_zone) for d in registry.devices()] == [
            ("pi-1", ("canary", "eu"), "Europe/Berlin"), ("pi-2", ("eu",), "UTC"),
            ("pi-3", (), "UTC"),
        ]  # fmt: skip
        for name, token in tokens_in(tokens).items():
            device = registry.device_of(token)
            assert device is not None
            assert device.name == name
    capsys.readouterr()
    devices(url, "list", "--json")
    assert json.loads(capsys.readouterr().out)[0]["groups"] == ["canary", "eu"]


def test_tokens_are_renewed_and_ended_by_name_and_by_group(url: str, tmp_path: Path) -> None:
    table, old, new = tmp_path / "devices.csv", tmp_path / "old.csv", tmp_path / "new.csv"
    table.write_text(TABLE)
    devices(url, "import", str(table), "-o", str(old))
    devices(url, "rotate", "--group", "eu", "-o", str(new))
    before, after = tokens_in(old), tokens_in(new)
    assert set(after) == {"pi-1", "pi-2"}
    with closing(Registry(url)) as registry:
        assert registry.device_of(before["pi-1"]) is None
        assert registry.device_of(before["pi-3"]) is not None
        kept = registry.device_of(after["pi-1"])
        assert kept is not None
        assert kept.groups == ("canary", "eu")
    devices(url, "revoke", "--group", "canary")
    devices(url, "label", "pi-2", "pi-3", "--groups", "us", "--time-zone", "Asia/Tokyo")
    with closing(Registry(url)) as registry:
        assert [(d.name, d.groups, d.revoked_s is None) for d in registry.devices()] == [
            ("pi-1", ("canary", "eu"), False), ("pi-2", ("us",), True), ("pi-3", ("us",), True),
        ]  # fmt: skip
    with pytest.raises(DeliveryError, match="No device is in a group 'canary'"):
        devices(url, "revoke", "--group", "canary")
    with pytest.raises(DeliveryError, match="No device 'pi-1' has a token"):
        devices(url, "revoke", "pi-1")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("device\npi-1\n", "has the columns device"),
        ("name,colour\npi-1,red\n", "has the columns name, colour"),
        ("name,groups\npi-1\n", "line 2 has not as many fields as the first, 2"),
        ("name\npi-1,x\n", "line 2 has not as many fields as the first, 1"),
        ("name\npi-1\npi-1\n", "line 3 names pi-1 a second time"),
        ("name,groups\npi-1,a/b\n", "line 2: A group's name"),
        ("name,time_zone\npi-1,Mars/Base\n", "line 2: There is no time zone 'Mars/Base'"),
        ("", "has no columns"),
        ("name,groups,time_zone\n", "names no device; write one in each line"),
        ("name;groups\npi-1;eu\n", "commas between fields, not semicolons"),
        ("name,name\npi-1,pi-2\n", "each once"),
        ('name\n"pi-1\n', "line 2 is not CSV"),
        ("name\npi-1\nM\u00fcller\n", "line 3: A device's name has .*, got 'M\u00fcller'"),
    ],
)
def test_tables_that_are_none_name_the_line(tmp_path: Path, table: str, words: str) -> None:
    path = tmp_path / "devices.csv"
    path.write_text(table, "utf-8")
    with pytest.raises(ConfigError, match=words):
        read_devices(path)


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "devices.csv"
    path.write_bytes(b"\xef\xbb\xbfname, groups\r\npi-1, eu canary\r\n\r\npi-2,\r\n")
    assert read_devices(path) == (NewDevice("pi-1", ("canary", "eu")), NewDevice("pi-2"))
    path.write_bytes("name\nM\u00fcller\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8; a spreadsheet calls that"):
        read_devices(path)


def test_an_import_is_all_or_nothing_and_overwrites_no_tokens(url: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.csv"
    with closing(Registry(url)) as registry:
        registry.add("pi-2")
        both = (NewDevice("pi-1"), NewDevice("pi-2"))
        with pytest.raises(DeliveryError, match="pi-2 has a token already"):
            import_devices(registry, both, tokens)
        with pytest.raises(DeliveryError, match="A device's name has"):
            import_devices(registry, (NewDevice("a b"),), tokens)
        assert not tokens.exists()
        assert [d.name for d in registry.devices()] == ["pi-2"]
        registry.revoke("pi-2")
        import_devices(registry, both, tokens)  # whose token ended comes anew
        with pytest.raises(ConfigError, match="is there already and may hold tokens"):
            import_devices(registry, (NewDevice("pi-3"),), tokens)
        assert set(tokens_in(tokens)) == {"pi-1", "pi-2"}


def test_nobody_is_not_everybody() -> None:
    with pytest.raises(ConfigError, match="Name devices, or a group"):
        Selection()
