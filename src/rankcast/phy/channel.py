"""Transport blocks through a simulated air interface: CRC, LDPC, QAM, channel, and back.

Follows TS 38.212: CRC of the block and of each code block (5.1), segmentation (5.2.2), rate
matching of each code block (5.4.2.1). Scrambling, which changes nothing over a channel without
structure, is left out; so are pilots: the receiver knows the channel. Only code blocks that have
not been decoded yet are decoded again after a retransmission.

Shapes: `C` code blocks, `n` coded bits of each, `S` symbols of a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from sionna.phy.fec.crc import CRCDecoder, CRCEncoder

from rankcast.link.nr import TransportBlock, base_graph
from rankcast.link.nr_link import NrLink
from rankcast.phy.code_blocks import ITERATIONS, REDUNDANCY_VERSIONS, CodeBlocks, noise

Gains = Callable[[int, torch.Generator], torch.Tensor]
"""Draws (S,) complex gains h of the data symbols of one slot, of unit mean power."""
_FAINTEST = 1e-9  # of |h|²; keeps the noise of an equalised symbol finite


def best_device() -> str:
    """Return a GPU if there is one, else the processor."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def flat(n_symbols: int, generator: torch.Generator) -> torch.Tensor:
    """Return ones: the SNR of the slot is that of every symbol."""
    return torch.ones(n_symbols, dtype=torch.complex64, device=generator.device)


@dataclass(frozen=True)
class SimulatedChannel:
    """Blocks that arrive when the decoder finds what was sent.

    Attributes:
        link: carrier and schemes; its implementation loss is taken off the SNR.
        gains: fading inside a slot, relative to the slot's SNR.
        iterations: of the decoder.
        device: such as "cpu" or "cuda:0".
    """

    link: NrLink
    gains: Gains = flat
    iterations: int = ITERATIONS
    device: str = "cpu"
    _codes: dict[tuple[int, int, int, int], CodeBlocks] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def begin(self, scheme: int, payload: bytes, rng: np.random.Generator) -> SimulatedAttempt:
        """Return a block with its code blocks encoded and a generator of its own noise."""
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**63)))
        return SimulatedAttempt(self, self.link.blocks[scheme], payload, generator)

    def codes(self, block: TransportBlock, n_coded_bits: int) -> CodeBlocks:
        """Return the code of a block's code blocks; built once."""
        order = block.mcs.bits_per_symbol
        graph = base_graph(block.payload_bits, block.mcs.code_rate)
        key = (block.code_block_bits, n_coded_bits, order, graph)
        if key not in self._codes:
            self._codes[key] = CodeBlocks(*key, iterations=self.iterations, device=self.device)
        return self._codes[key]


class SimulatedAttempt:
    """A transport block under way, with what the receiver has kept of it."""

    def __init__(
        self,
        channel: SimulatedChannel,
        block: TransportBlock,
        payload: bytes,
        generator: torch.Generator,
    ) -> None:
        self._channel, self._block, self._generator = channel, block, generator
        self._crc = _Crc(block, channel.device)
        self._sent = self._crc.code_blocks(payload)
        self._sizes = coded_sizes(block)
        self._soft: list[list[torch.Tensor]] = [[] for _ in self._sizes]
        self._decoded: list[torch.Tensor | None] = [None] * block.n_code_blocks
        self._versions: list[int] = []

    def transmit(self, snr_db: float) -> bytes | None:
        """Send the next redundancy version; return the payload once every checksum agrees."""
        version = REDUNDANCY_VERSIONS[len(self._versions) % len(REDUNDANCY_VERSIONS)]
        self._versions.append(version)
        variance = torch.tensor(10.0 ** ((self._channel.link.impl_loss_db - snr_db) / 10.0))
        order = self._block.mcs.bits_per_symbol
        gains = self._channel.gains(self._block.coded_bits // order, self._generator)
        for size, rows, at in self._groups():
            codes = self._channel.codes(self._block, size)
            h = gains[at : at + len(rows) * size // order].reshape(len(rows), -1)
            noise_power = variance.to(h.device) / h.abs().square().clamp_min(_FAINTEST)
            received = codes.symbols(self._sent[rows], version) + noise(
                h.shape, noise_power, self._generator
            )
            soft = torch.nan_to_num(codes.llrs(received, noise_power))
            self._keep(codes, rows, soft)
        whole = [part for part in self._decoded if part is not None]
        return self._crc.payload(whole) if len(whole) == len(self._decoded) else None

    def _groups(self) -> list[tuple[int, list[int], int]]:
        """Return coded size, code blocks and first coded symbol of each size in turn."""
        order, at, groups = self._block.mcs.bits_per_symbol, 0, []
        for size in dict.fromkeys(self._sizes):
            rows = [i for i, other in enumerate(self._sizes) if other == size]
            groups.append((size, rows, at))
            at += len(rows) * size // order
        return groups

    def _keep(self, codes: CodeBlocks, rows: list[int], soft: torch.Tensor) -> None:
        """Store what was received of each code block and decode those not decoded yet."""
        for row, values in zip(rows, soft, strict=True):
            self._soft[row].append(values)
        # From nothing the decoder returns zeros, whose checksum is right.
        received = [row for row in rows if any(bool(v.any()) for v in self._soft[row])]
        left = [row for row in received if self._decoded[row] is None]
        if not left:
            return
        stacked = [torch.stack([self._soft[row][v] for row in left])
                   for v in range(len(self._versions))]  # fmt: skip
        decided = codes.decode(stacked, self._versions)
        good = self._crc.agree(decided)
        for row, bits, valid in zip(left, decided, good, strict=True):
            if valid:
                self._decoded[row] = bits


def coded_sizes(block: TransportBlock) -> tuple[int, ...]:
    """Return (C,) coded bits of each code block (TS 38.212, 5.4.2.1): whole symbols, as even."""
    order, n_blocks = block.mcs.bits_per_symbol, block.n_code_blocks
    symbols = block.coded_bits // order
    longer = symbols % n_blocks
    shorter = symbols // n_blocks * order
    return tuple(shorter if i < n_blocks - longer else shorter + order for i in range(n_blocks))


class _Crc:
    """Checksums of a block: bytes into code blocks, and code blocks into bytes."""

    def __init__(self, block: TransportBlock, device: str) -> None:
        self._block, self._device = block, device
        encoder = CRCEncoder("CRC24A" if block.crc_bits == 24 else "CRC16", device=device)
        self._of_block = encoder, CRCDecoder(encoder, device=device)
        each = CRCEncoder("CRC24B", device=device)
        self._of_each = each, CRCDecoder(each, device=device)
        self._alone = block.n_code_blocks == 1

    def code_blocks(self, payload: bytes) -> torch.Tensor:
        """Return (C, K') information bits with every checksum."""
        bits = np.unpackbits(np.frombuffer(payload, dtype=np.uint8))
        tensor = torch.from_numpy(bits).to(self._device, torch.float32)
        whole = self._of_block[0](tensor[None])
        if self._alone:
            return whole
        return self._of_each[0](whole.reshape(self._block.n_code_blocks, -1))

    def agree(self, decided: torch.Tensor) -> list[bool]:
        """Return whether the checksum of each of (B, K') code blocks agrees."""
        checker = self._of_block[1] if self._alone else self._of_each[1]
        return checker(decided)[1].reshape(-1).bool().tolist()

    def payload(self, code_blocks: list[torch.Tensor]) -> bytes | None:
        """Return the bytes of C decided code blocks, or None where the block's checksum fails."""
        whole = torch.stack(code_blocks)
        if not self._alone:
            whole = whole[:, :-24].reshape(1, -1)
        bits, good = self._of_block[1](whole)
        if not bool(good):
            return None
        return np.packbits(bits[0].to("cpu", torch.uint8).numpy()).tobytes()
