"""LDPC code blocks of one size: encode, match the rate, map to QAM, and all of it back.

The codes are Sionna's (J. Hoydis et al., Sionna: an open-source library for next-generation
physical layer research, 2022). Two of its limits are worked around here: it refuses code rates
below those of the base graphs, 1/3 and 1/5, where TS 38.212 repeats coded bits; and it has no
redundancy versions for blocks that repeat.

Shapes: `B` code blocks, `k` information bits, `n` coded bits, `V` transmissions, `Q` bits a symbol.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankcast.errors import ConfigError
from rankcast.link.bler import ORDERS

try:
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import Constellation, Demapper, Mapper
except ImportError as error:  # pragma: no cover - every environment of the tests has it
    raise ConfigError(
        "Simulating the air interface needs Sionna: pip install 'rankcast[phy]'."
    ) from error

REDUNDANCY_VERSIONS = (0, 2, 3, 1)
"""In the order of TS 38.214, table 5.1.2.1-2; the fifth transmission begins again."""
ITERATIONS = 20
"""Of belief propagation, flooding, exact check node updates."""
_LONGEST = {1: 3, 2: 5}  # code bits per information bit of each base graph, not repeated


class CodeBlocks:
    """LDPC code blocks of one size with one modulation.

    Args:
        n_info_bits: k, CRC included.
        n_coded_bits: n, a multiple of the bits of a symbol.
        bits_per_symbol: Q_m.
        base_graph: 1 or 2 of TS 38.212.
        iterations: of the decoder.
        device: such as "cpu" or "cuda:0".

    Raises:
        ConfigError: Sionna has no such code; the reason is its own.
    """

    def __init__(
        self,
        n_info_bits: int,
        n_coded_bits: int,
        bits_per_symbol: int,
        base_graph: int,
        *,
        iterations: int = ITERATIONS,
        device: str = "cpu",
    ) -> None:
        if base_graph not in _LONGEST or bits_per_symbol not in ORDERS or n_coded_bits < 1:
            raise ConfigError(
                f"NR has base graphs {tuple(_LONGEST)} and symbols of {ORDERS} bits, got base "
                f"graph {base_graph} and {n_coded_bits} coded bits, {bits_per_symbol} a symbol."
            )
        if n_coded_bits % bits_per_symbol:
            raise ConfigError(
                f"{n_coded_bits} coded bits fill no whole number of symbols of {bits_per_symbol}."
            )
        self.n_info_bits, self.n_coded_bits = n_info_bits, n_coded_bits
        self.bits_per_symbol, self.device = bits_per_symbol, device
        at_most = _LONGEST[base_graph] * n_info_bits // bits_per_symbol * bits_per_symbol
        self._n_sent_once = min(n_coded_bits, at_most)
        try:
            self._encoder = LDPC5GEncoder(
                n_info_bits,
                self._n_sent_once,
                num_bits_per_symbol=bits_per_symbol,
                bg=f"bg{base_graph}",
                device=device,
            )
        except ValueError as error:
            raise ConfigError(
                f"No LDPC code for {n_info_bits} bits in {n_coded_bits}: {error}"
            ) from error
        options = {"hard_out": True, "num_iter": iterations, "device": device}
        self._decoder = LDPC5GDecoder(self._encoder, **options)
        self._combining = LDPC5GDecoder(self._encoder, harq_mode=True, **options)
        constellation = Constellation("qam", bits_per_symbol, device=device)
        self._mapper = Mapper(constellation=constellation, device=device)
        self._demapper = Demapper("app", constellation=constellation, device=device)

    def symbols(self, bits: torch.Tensor, version: int = 0) -> torch.Tensor:
        """Return (B, n/Q) complex symbols of unit mean power.

        Args:
            bits: (B, k) zeros and ones, float.
            version: redundancy version, 0 to 3.
        """
        coded = self._encoder(bits, rv=[version])[:, 0]
        repeats = -(-self.n_coded_bits // self._n_sent_once)
        return self._mapper(coded.repeat(1, repeats)[:, : self.n_coded_bits])

    def llrs(self, received: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return (B, n') log p(1)/p(0), repetitions of a bit added up.

        Args:
            received: (B, n/Q) symbols after equalisation: x plus noise.
            noise: variance of the noise of each symbol, broadcasting to (B, n/Q).
        """
        soft = self._demapper(received, noise.expand(received.shape))
        combined = soft[:, : self._n_sent_once].clone()
        for start in range(self._n_sent_once, self.n_coded_bits, self._n_sent_once):
            part = soft[:, start : start + self._n_sent_once]
            combined[:, : part.shape[1]] += part
        return combined

    def decode(self, llrs: Sequence[torch.Tensor], versions: Sequence[int] = (0,)) -> torch.Tensor:
        """Return (B, k) decided bits from what was received so far (incremental redundancy).

        Args:
            llrs: (B, n') of each of V transmissions.
            versions: V redundancy versions.
        """
        if tuple(versions) == (0,):
            return self._decoder(llrs[0])
        return self._combining(torch.stack(list(llrs), dim=1), rv=list(versions))


def noise(shape: Sequence[int], variance: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return circular complex Gaussian noise of a variance that broadcasts to its shape."""
    drawn = torch.randn(
        tuple(shape), dtype=torch.complex64, generator=generator, device=generator.device
    )
    return drawn * variance.sqrt()
