"""The map between ranks and the numbers that a diffusion model works on.

The interval [-1, 1] is cut into r_max + 1 bins of equal width; a rank is encoded as the centre of
its bin and decoded as the index of the bin that a number falls into. Uniform noise inside the bin
(`dequantise`) turns the r_max + 1 points into a density, which a diffusion model learns better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankcast.errors import ConfigError


def bin_width(r_max: int) -> float:
    """Return the width of one rank's bin, 2 / (r_max + 1).

    Raises:
        ConfigError: r_max below 1.
    """
    if r_max < 1:
        raise ConfigError(
            f"r_max must be at least 1, got {r_max}: with one rank nothing is decided."
        )
    return 2.0 / (r_max + 1)


def encode(ranks: Tensor, r_max: int) -> Tensor:
    """Return the float32 bin centres, in [-1, 1], of integer ranks of any shape.

    Raises:
        ConfigError: r_max below 1, ranks that are not integers, or a rank outside 0..r_max.
    """
    width = bin_width(r_max)
    if ranks.is_floating_point():
        raise ConfigError(
            f"Ranks must be integers, got {ranks.dtype}; decode codes before encoding."
        )
    if ranks.numel() and not (int(ranks.min()) >= 0 and int(ranks.max()) <= r_max):
        raise ConfigError(
            f"Ranks must lie in 0..{r_max}, got {int(ranks.min())}..{int(ranks.max())}; "
            f"clip them or raise r_max."
        )
    return ((ranks.to(torch.float64) + 0.5) * width - 1.0).to(torch.float32)


def decode(code: Tensor, r_max: int) -> Tensor:
    """Return the int64 ranks of codes of any shape (Eq. 18); numbers beyond [-1, 1] are clipped.

    Differs from the paper: Eq. 18 floors x_0 itself, which is right only if x_0 is already on the
    scale of ranks. Here the affine map that inverts `encode` comes before the floor, and because
    codes are bin centres no rounding error can move a rank to its neighbour.

    Raises:
        ConfigError: r_max below 1, or NaN among the codes.
    """
    width = bin_width(r_max)
    if bool(torch.isnan(code).any()):
        raise ConfigError("Rank codes contain NaN: the denoiser diverged; lower its learning rate.")
    bins = torch.floor((code.to(torch.float64) + 1.0) / width)
    return bins.clamp(0, r_max).to(torch.int64)


def dequantise(
    code: Tensor, r_max: int, generator: torch.Generator, width_fraction: float = 1.0
) -> Tensor:
    """Return the codes plus uniform noise over `width_fraction` of a bin; each decodes as before.

    Args:
        code: bin centres from `encode`, any shape.
        r_max: largest rank.
        generator: source of the noise.
        width_fraction: share of the bin that the noise spans, in [0, 1]; 0.5 is half a rank.

    Raises:
        ConfigError: r_max below 1 or width_fraction outside [0, 1].
    """
    width = bin_width(r_max)
    if not 0.0 <= width_fraction <= 1.0:
        raise ConfigError(f"width_fraction must lie in [0, 1], got {width_fraction}.")
    # A hair less than the bin, so that float32 rounding at an edge cannot reach the next rank.
    span = width * width_fraction * (1.0 - 1e-4)
    uniform = torch.rand(code.shape, generator=generator, device=generator.device)
    return code + span * (uniform.to(code) - 0.5)
