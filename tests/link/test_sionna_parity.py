"""Our arithmetic of NR against Sionna's, and what is built around Sionna's codes."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.links import link
from rankcast.errors import ConfigError
from rankcast.link.nr import Carrier, McsTable, mcs_table, transport_block

pytest.importorskip("sionna")

import torch
from sionna.phy.nr.utils import calculate_tb_size, decode_mcs_index

from rankcast.phy.channel import SimulatedChannel, coded_sizes
from rankcast.phy.code_blocks import CodeBlocks, noise
from studies.bler.fitting import through_awgn

TABLES: dict[McsTable, int] = {"64qam": 1, "256qam": 2}
every_table = pytest.mark.parametrize("table", TABLES)


@every_table
def test_schemes(table: McsTable) -> None:
    ours = mcs_table(table)
    order, rate = decode_mcs_index(torch.arange(len(ours)), TABLES[table], is_pusch=False)
    assert [mcs.bits_per_symbol for mcs in ours] == order.tolist()
    assert [mcs.code_rate for mcs in ours] == rate.tolist()


@every_table
@pytest.mark.parametrize("n_prb", [1, 2, 5, 11, 25, 52, 79, 106, 133, 217, 273])
def test_transport_blocks(table: McsTable, n_prb: int) -> None:
    blocks = [transport_block(mcs, Carrier(100e6, 30e3, n_prb)) for mcs in mcs_table(table)]
    size, code_block, n_blocks, crc, _, coded = calculate_tb_size(
        torch.tensor([b.mcs.bits_per_symbol for b in blocks]),
        torch.tensor([b.mcs.code_rate for b in blocks]),
        num_coded_bits=torch.tensor([b.coded_bits for b in blocks]),
        verbose=False,
    )
    assert [b.payload_bits for b in blocks] == size.tolist()
    assert [b.crc_bits for b in blocks] == crc.tolist()
    assert [b.n_code_blocks for b in blocks] == n_blocks.tolist()
    assert [b.code_block_bits for b in blocks] == code_block.tolist()
    assert [list(coded_sizes(b)) for b in blocks] == [
        [n for n in row if n > 0] for row in coded.tolist()
    ]


@every_table
def test_elements_that_count(table: McsTable) -> None:
    # Without control symbols, of the 168 elements of a resource block only 156 count.
    blocks = [transport_block(mcs, Carrier(10e6, 15e3, 52, 0)) for mcs in mcs_table(table)]
    size, *_ = calculate_tb_size(
        torch.tensor([b.mcs.bits_per_symbol for b in blocks]),
        torch.tensor([b.mcs.code_rate for b in blocks]),
        num_prbs=52, num_ofdm_symbols=14, num_dmrs_per_prb=0, verbose=False,
    )  # fmt: skip
    assert [b.payload_bits for b in blocks] == size.tolist()


def random_bits(n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n, k), generator=generator).float(), generator


def lost_share(
    blocks: CodeBlocks, snr_db: float, versions: tuple[int, ...] = (0,), n: int = 200, seed: int = 0
) -> float:
    """Return the share of blocks that cannot be decoded from transmissions at Es/N0 [dB]."""
    bits, generator = random_bits(n, blocks.n_info_bits, seed)
    variance = torch.tensor(10 ** (-snr_db / 10))
    soft = []
    for version in versions:
        sent = blocks.symbols(bits, version)
        soft.append(blocks.llrs(sent + noise(sent.shape, variance, generator), variance))
    return float((blocks.decode(soft, versions) != bits).any(dim=1).float().mean())


K, N = 80, 160
HALF_DB = 1.5
"""SNR at which half of the blocks of 80 bits in 160 are lost, QPSK and 8 iterations [dB]."""
ERROR = 0.05
"""Standard error of the difference of two shares of 200 blocks, at most."""


@pytest.fixture(scope="module")
def blocks() -> CodeBlocks:
    return CodeBlocks(K, N, 2, 2, iterations=8)


def test_sending_twice_is_sending_with_twice_the_power(blocks: CodeBlocks) -> None:
    # Adding up the soft bits of two receptions is one reception at 3.01 dB more.
    once = lost_share(blocks, HALF_DB)
    assert 0.3 < once < 0.7
    twice = lost_share(blocks, HALF_DB - 3.01, (0, 0), seed=1)
    assert twice == pytest.approx(once, abs=5 * ERROR)
    # Half a decibel moves the share by four standard errors.
    assert lost_share(blocks, HALF_DB - 3.51, (0, 0), 100, 1) > once + 0.1
    assert lost_share(blocks, HALF_DB - 2.51, (0, 0), 100, 1) < once - 0.1


def test_new_bits_are_worth_more_than_the_same_again(blocks: CodeBlocks) -> None:
    at_db = HALF_DB - 3.01
    chase, incremental = (lost_share(blocks, at_db, v, seed=1) for v in ((0, 0), (0, 2)))
    # From rate 1/2 to 1/4 the code gains half a decibel, a share of about 0.2.
    assert incremental < chase - 0.1


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_versions_carry_different_bits_of_one_block(blocks: CodeBlocks, version: int) -> None:
    bits, _ = random_bits(2, K)
    first, other = blocks.symbols(bits), blocks.symbols(bits, version)
    assert other.shape == (2, N // 2)
    assert torch.equal(first, other) == (version == 0)
    assert float(other.abs().square().mean()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("base_graph", "n_coded_bits", "n_once"),
    # MCS 0, R = 120/1024, below the 1/5 of base graph 2; MCS 4, 308/1024, below 1/3 of graph 1.
    [(2, 2_048, 1_200), (1, 798, 720)],
)
def test_repetition_below_the_rate_of_the_graph(
    base_graph: int, n_coded_bits: int, n_once: int
) -> None:
    blocks = CodeBlocks(240, n_coded_bits, 2, base_graph)
    bits, generator = random_bits(20, 240)
    sent = blocks.symbols(bits)
    assert sent.shape == (20, n_coded_bits // 2)
    # What goes beyond the code begins it again.
    again = sent[:, n_once // 2 :]
    assert torch.equal(again, sent[:, : again.shape[1]])
    assert torch.equal(through_awgn(blocks, bits, 10.0, generator), bits)


def test_repetition_gains_what_it_costs() -> None:
    once, repeated = (CodeBlocks(80, n, 2, 2, iterations=8) for n in (400, 680))
    at_db = -3.2
    lost = lost_share(once, at_db)
    assert 0.4 < lost < 0.8
    # 10·lg(680/400) = 2.3 dB more energy: as good 2.3 dB below, and nearly perfect here.
    assert lost_share(repeated, at_db, seed=1) < 0.05
    assert lost_share(repeated, at_db - 2.3, seed=2) == pytest.approx(lost, abs=5 * ERROR)


@pytest.mark.parametrize(
    "sizes",
    [
        (8, 40, 2, 2),  # NR has no code of less than 12 bits
        (640, 640, 2, 2),  # a rate above 0.95
        (8_456, 16_912, 2, 1),  # more than base graph 1 takes
        (3_848, 7_696, 2, 2),  # and 2
        (640, 1_281, 2, 2),  # half a symbol
        (640, 1_284, 3, 2),
        (640, 1_280, 0, 2),
        (640, 1_280, 2, 3),
        (640, 0, 2, 2),
    ],
)
def test_impossible_code_blocks(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        CodeBlocks(*sizes)


def test_a_block_of_many_code_blocks_arrives_in_order() -> None:
    # 64QAM at 948/1024 on 52 resource blocks: five code blocks, of two coded sizes.
    nr = link(Carrier.for_bandwidth(10e6))
    block = nr.blocks[28]
    assert block.n_code_blocks == 5
    assert len(set(coded_sizes(block))) == 2
    rng = np.random.default_rng(0)
    payload = rng.bytes(block.payload_bits // 8)
    assert SimulatedChannel(nr).begin(28, payload, rng).transmit(30.0) == payload


def test_a_large_block_below_the_rate_of_graph_1_arrives() -> None:
    nr = link(Carrier.for_bandwidth(10e6))
    assert nr.blocks[4].payload_bits > 3_824
    rng = np.random.default_rng(0)
    payload = rng.bytes(nr.blocks[4].payload_bits // 8)
    assert SimulatedChannel(nr).begin(4, payload, rng).transmit(10.0) == payload


TINY = link(Carrier(1e6, 15e3, 3))


def lost_blocks(channel: SimulatedChannel, scheme: int, snr_db: float, n: int) -> int:
    rng = np.random.default_rng(0)
    size = channel.link.blocks[scheme].payload_bits // 8
    return sum(
        channel.begin(scheme, rng.bytes(size), rng).transmit(snr_db) is None for _ in range(n)
    )


def uneven(n_symbols: int, generator: torch.Generator) -> torch.Tensor:
    """Return gains of unit mean power of which every other one is 3 dB weaker."""
    power = torch.ones(n_symbols)
    power[::2] = 0.5
    return (power / power.mean()).sqrt().to(torch.complex64)


def test_uneven_gains_lose_more_than_flat_ones_of_the_same_mean() -> None:
    scheme, at_db, n = 27, 18.2, 30
    flat = lost_blocks(SimulatedChannel(TINY), scheme, at_db, n)
    selective = lost_blocks(SimulatedChannel(TINY, uneven), scheme, at_db, n)
    # A quarter against most of them; counts of 30 have a standard error of less than 3.
    assert 0 < flat < 15
    assert selective > flat + 10


def test_no_signal_is_no_block_of_zeros() -> None:
    channel = SimulatedChannel(TINY, lambda n, _: torch.zeros(n, dtype=torch.complex64))
    payload = bytes(TINY.blocks[4].payload_bits // 8)
    attempt = channel.begin(4, payload, np.random.default_rng(0))
    assert [attempt.transmit(30.0) for _ in range(2)] == [None, None]
    # Symbols without signal do no harm to the others.
    channel = SimulatedChannel(TINY, lambda n, _: (torch.arange(n) % 8 > 0).to(torch.complex64))
    assert channel.begin(4, payload, np.random.default_rng(0)).transmit(30.0) == payload


def test_implementation_loss_is_taken_off_the_snr() -> None:
    real = SimulatedChannel(link(Carrier(1e6, 15e3, 3), impl_loss_db=3.0))
    lost = lost_blocks(SimulatedChannel(TINY), 14, 7.0, 20)
    assert 0 < lost < 20
    assert lost_blocks(real, 14, 10.0, 20) == lost
