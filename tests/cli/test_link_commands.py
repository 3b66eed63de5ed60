"""`rankcast link`: what a person sees, and what arrives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from helpers.commands import Call, fresh_python
from rankcast.cli.demo import air_table
from rankcast.cli.link import LinkSend, _usable
from rankcast.codec.container import Container, read_container
from rankcast.codec.header import Measure
from rankcast.errors import LinkError

WIDTHS, RANKS = ((96, 64), (64, 192), (96, 96)), (8, 8, 8)


@pytest.fixture(scope="module")
def container() -> Container:
    return packed(random_adapter(0, WIDTHS, RANKS), finest=-30, n_steps=4)


@pytest.fixture
def file(container: Container, tmp_path: Path) -> Path:
    path = tmp_path / "a.rcast"
    path.write_bytes(container.to_bytes())
    return path


def test_real_bits_cross_and_the_file_is_the_same(file: Path, tmp_path: Path, call: Call) -> None:
    pytest.importorskip("sionna")
    target = tmp_path / "got.rcast"
    link = ("--snr-db", "12", "--bandwidth-hz", "5e6", "--seed", "1")
    out = call.ok("link", "send", str(file), *link, "-o", str(target))
    assert "all of it received" in out
    assert "simulated air interface" in out
    assert target.read_bytes() == file.read_bytes()


def test_a_deadline_leaves_the_best_prefix(file: Path, tmp_path: Path, call: Call) -> None:
    whole = LinkSend(file=file, snr_db=5.0, bandwidth_hz=5e6, link="table").transfer()
    assert whole.delivery.complete
    half_s = 0.5 * whole.delivery.air_time_s
    target = tmp_path / "got.rcast"
    sent = json.loads(call.ok(
        "link", "send", str(file), "--snr-db", "5", "--bandwidth-hz", "5e6", "--link", "table",
        "--deadline-s", str(half_s), "-o", str(target), "--json"
    ))  # fmt: skip
    assert sent["air_time_s"] <= half_s
    assert 0 < sent["chunks"] < sent["chunks_sent"]
    got = read_container(target.read_bytes(), allow_prefix=True)
    assert len(got.chunks) == sent["chunks"]
    # Every chunk that is whole in what arrived is used, and no other.
    parts = whole.whole.chunks
    ends = np.cumsum([len(whole.whole.to_bytes()) - sum(map(len, parts)), *map(len, parts)])
    assert ends[sent["chunks"]] <= sent["received_bytes"] < ends[sent["chunks"] + 1]
    first = Container(whole.whole.header, parts[: sent["chunks"]]).tensors()
    for one, other in zip(got.tensors().factors, first.factors, strict=True):
        assert np.array_equal(one.delta_weight(), other.delta_weight())


def test_lost_blocks_leave_the_prefix_before_them(file: Path) -> None:
    outcomes = [
        LinkSend(file=file, snr_db=9.0, bandwidth_hz=1e6, link="table", fading="rayleigh",
                  speed_m_s=30.0, max_transmissions=1, seed=seed).transfer()
        for seed in range(12)
    ]  # fmt: skip
    cut = [o for o in outcomes if not o.delivery.complete]
    assert cut
    for outcome in cut:
        data, received = outcome.whole.to_bytes(), outcome.delivery.received
        assert data.startswith(received)
        assert not outcome.delivery.blocks[-1].arrived
        if outcome.arrived is not None:
            assert outcome.arrived.chunks == outcome.whole.chunks[: len(outcome.arrived.chunks)]


def test_a_measured_trace_is_what_the_link_does(file: Path, tmp_path: Path, call: Call) -> None:
    # Good for 10 ms, so bad for the next 10 ms that nothing passes, then good again for a second.
    rows = ["t,snr", *(f"{0.01 * k:.2f},{-20 if k == 1 else 12}" for k in range(100))]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(rows), "utf-8")
    options = ("--trace", str(trace), "--time-column", "t", "--value-column", "snr",
               "--bandwidth-hz", "2e5", "--link", "table", "--max-transmissions", "40",
               "--report-delay-slots", "0", "--json")  # fmt: skip
    sent = json.loads(call.ok("link", "send", str(file), *options))
    assert sent["retransmissions"] >= 9  # of the bad ten slots
    # Shannon by hand: the mean of log2(1 + 10^1.2) 99 times and log2(1.01) once.
    mean = (99 * np.log2(1 + 10**1.2) + np.log2(1.01)) / 100
    assert sent["shannon_air_time_s"] == pytest.approx(8 * sent["sent_bytes"] / (2e5 * mean))


def test_a_trace_is_read_once_with_the_gap_that_is_given(
    file: Path, tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    trace = tmp_path / "trace.csv"
    options = (str(file), "--trace", str(trace), "--bandwidth-hz", "5e6", "--link", "table")
    trace.write_text("time_s,snr_db\n0,12\n10,nan\n20,12\n30,12\n40,-\n", "utf-8")
    call.ok("link", "send", *options)  # a row every 10 s, two without a value
    assert [record.getMessage() for record in caplog.records] == [
        f"{trace}: rows without a value were skipped: 2."
    ]
    trace.write_text("time_s,snr_db\n0,12\n90,12\n180,-20\n", "utf-8")
    assert "--trace-gap-s" in call.refused("link", "send", *options)
    sent = json.loads(call.ok("link", "send", *options, "--trace-gap-s", "90", "--json"))
    # Shannon by hand: two thirds of the time at 12 dB, one at -20 dB.
    mean = (2 * np.log2(1 + 10**1.2) + np.log2(1.01)) / 3
    assert sent["shannon_air_time_s"] == pytest.approx(8 * sent["sent_bytes"] / (5e6 * mean))


@pytest.mark.parametrize(
    "options", [(), ("--snr-db", "5", "--trace", "x.csv"), ("--trace", "x", "--fading", "rayleigh")]
)
def test_one_snr_is_wanted(file: Path, options: tuple[str, ...], call: Call) -> None:
    err = call.refused("link", "send", str(file), "--bandwidth-hz", "1e6", *options)
    assert "--trace" in err or "--fading" in err


def test_nothing_usable_is_reported(file: Path, call: Call) -> None:
    link = ("--snr-db", "-25", "--bandwidth-hz", "1e6", "--link", "table")
    status, out, _ = call("link", "send", str(file), *link)
    assert status == 1
    assert "Nothing can be decoded" in out
    assert "never arrives" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bandwidth-hz", "1e5"), "narrower than one resource block"),
        (("--bandwidth-hz", "1e6", "--delay-profile", "tdl-a"), "--link nr"),
        (("--bandwidth-hz", "1e6", "--deadline-s", "-1"), "deadline must be positive"),
        (("--bandwidth-hz", "1e6", "--max-transmissions", "0"), "at least one transmission"),
    ],
)
def test_an_impossible_link_is_refused(
    file: Path, options: tuple[str, ...], message: str, call: Call
) -> None:
    command = ("link", "send", str(file), "--snr-db", "5", "--link", "table", *options)
    err = call.refused(*command)
    assert message in err


def test_a_delay_profile_inside_the_slots(file: Path) -> None:
    pytest.importorskip("sionna")
    outcome = LinkSend(
        file=file, snr_db=15.0, bandwidth_hz=1e6, delay_profile="tdl-c", delay_spread_s=3e-7
    ).transfer()
    assert outcome.delivery.complete
    assert np.isnan(outcome.predicted_s)


def test_rates_of_a_link(call: Call) -> None:
    link = ("link", "rates", "--snr-db", "5", "--bandwidth-hz", "5e6")
    rates = json.loads(call.ok(*link, "--json"))
    # Shannon by hand: 5 MHz·log2(1 + 10^0.5) = 10.287 Mbit/s.
    assert rates["rate_bps"]["awgn"] == pytest.approx(10.287e6, rel=1e-4)
    assert 0.4 < rates["rate_bps"]["nr_64qam"] / rates["rate_bps"]["awgn"] < 0.72
    assert rates["reading"] == "ergodic"
    assert "nr_256qam" in call.ok(*link)


def test_curves_are_drawn_and_printed(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("matplotlib")
    for kind, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = tmp_path / f"curves.{kind}"
        out = call.ok("link", "curves", "-o", str(path))
        assert "of Shannon's rate" in out
        assert path.read_bytes().startswith(magic)
    curves = json.loads(call.ok("link", "curves", "--json"))
    assert len(curves["block_error"]) == 29
    awgn, nr = (np.array(curves["bit_per_s_per_hz"][name]) for name in ("awgn", "nr_64qam"))
    assert (nr < awgn).all()
    call.refused("link", "curves", "-o", str(tmp_path / "x.txt"))


def test_the_air_table_of_a_demo(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("sionna")
    from rankcast.codec.formats.peft import write_peft

    tensors = random_adapter(0, WIDTHS, RANKS)
    folder = write_peft(tensors, tmp_path / "lora", base_model_name="tiny", task_type="SEQ_CLS")
    table = air_table(folder, (0.0, 10.0))
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["0", "5", "10"]
    assert "all bytes right" in cells[3][1]
    assert "NOT" not in cells[3][1]


def test_a_link_that_ends_is_no_error(file: Path) -> None:
    with pytest.raises(LinkError, match="deadline"):
        LinkSend(file=file, snr_db=5.0, bandwidth_hz=1e6, link="table", deadline_s=0.0).transfer()


def test_looking_at_the_link_needs_no_torch() -> None:
    code = (
        "import sys; from rankcast.cli.main import main\n"
        "try: main(['link', 'rates', '--snr-db', '5', '--bandwidth-hz', '5e6'])\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('heavy', sorted({'torch', 'sionna', 'matplotlib'} & set(sys.modules)))"
    )
    done = fresh_python(code)
    assert "nr_64qam" in done.stdout
    assert "status 0" in done.stdout
    assert "heavy []" in done.stdout


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("loss", "expected loss 0.250"), ("divergence", "expected divergence from the adapter 0.250")],
)
def test_what_arrived_is_told_by_what_was_measured(measure: Measure, expected: str) -> None:
    plain = {"chunks": 1, "chunks_sent": 2, "accuracy": None, "loss": 0.25}
    assert expected in _usable(plain, measure)
