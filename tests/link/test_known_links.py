"""Known links: what each carries, by hand, and the page that says so."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from helpers.commands import Call
from rankcast.link.known import KNOWN, MessageLink, RadioLink

PAGE = Path(__file__).parents[2] / "docs" / "links.md"


def test_a_radio_by_hand() -> None:
    link = RadioLink("", "", bandwidth_hz=8e3, deadline_s=2.0, fastest_bps=12e3)
    # At 0 dB one bit for each hertz: 8 kbit/s for 2 s; at 4.77 dB two bits, but no more than 12.
    assert link.bytes_at(0.0) == pytest.approx(2000.0)
    assert link.bytes_at([0.0, 10 * np.log10(3)]) == pytest.approx([2000.0, 3000.0])


def test_messages_by_hand() -> None:
    link = MessageLink("", "", 270)
    assert link.bytes_at([-5.0, 15.0]).tolist() == [270, 270]


def test_links_are_in_order_and_say_where_their_numbers_come_from() -> None:
    at_15_db = [float(link.bytes_at(15.0)) for link in KNOWN.values()]
    assert at_15_db == sorted(at_15_db)
    assert all(link.source and link.what for link in KNOWN.values())


def test_the_page_has_the_numbers_of_the_command(call: Call) -> None:
    shown = {row["link"]: row["bytes"] for row in json.loads(call.ok("link", "budgets", "--json"))}
    row = re.compile(r"^\| `([\w-]+)` \|.*?((?:\| [\d,]+ ){5})\|", re.MULTILINE)
    written = dict(row.findall(PAGE.read_text("utf-8")))
    assert written.keys() == shown.keys()
    for name, cells in written.items():
        numbers = [int(cell.strip().replace(",", "")) for cell in cells.strip("| ").split("|")]
        assert numbers == [round(n) for n in shown[name].values()]


def test_the_command_says_which_chunks_arrive(call: Call, tmp_path: Path) -> None:
    container = packed(random_adapter(0, ((96, 64), (64, 192)), (8, 8)), finest=-30, n_steps=4)
    file = container.save(tmp_path / "a.rcast")
    rows = json.loads(call.ok("link", "budgets", str(file), "--snr-db", "5", "--json"))
    for row in rows:
        (n_bytes,) = row["bytes"].values()
        assert row["chunks"] == [sum(prefix.n_bytes <= n_bytes for prefix in container.ladder)]
    assert "(all)" in call.ok("link", "budgets", str(file))
