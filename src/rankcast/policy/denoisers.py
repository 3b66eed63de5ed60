"""The networks f_ψ that predict noise, clean code or velocity (Eq. 15).

Shapes: `B` samples, `N` projections, `C` numbers of condition. Both networks hold a learned null
condition, which takes the place of the condition where `drop` says that it is hidden. The first
`n_visible` numbers are never hidden: the state is always known, PPO's proposal may be left out.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rankcast.errors import ConfigError


@runtime_checkable
class Denoiser(Protocol):
    """A network that a sampler can call."""

    def __call__(
        self, x: Tensor, tau: Tensor, condition: Tensor, drop: Tensor | None = None
    ) -> Tensor:
        """Map x (B, N), tau (B,) long, condition (B, C), drop (B,) bool to an output (B, N)."""
        ...


def time_embedding(tau: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return (B, dim) sines and cosines of tau (B,) at geometrically spaced periods."""
    half = dim // 2
    rates = torch.exp(
        -math.log(max_period) * torch.arange(half, device=tau.device, dtype=torch.float32) / half
    )
    angles = tau.to(torch.float32).unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ResidualMlpDenoiser(nn.Module):
    """Residual MLP over Concat[x_τ, e_τ, condition]: h ← h + SiLU(W·h + b) per block.

    Args:
        n: N.
        condition_dim: C.
        hidden: width d_latent.
        blocks: how many residual blocks; the paper has two.
        time_dim: width of e_τ, even.
        n_visible: how many numbers of the condition are never hidden.

    Raises:
        ConfigError: a size that is not positive, or an odd time_dim.
    """

    def __init__(
        self,
        n: int,
        condition_dim: int,
        hidden: int = 512,
        blocks: int = 2,
        *,
        time_dim: int = 64,
        n_visible: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(n, condition_dim, time_dim, hidden=hidden, blocks=blocks)
        self.n_visible = n_visible
        self.n, self.condition_dim, self.time_dim = n, condition_dim, time_dim
        self.input = nn.Linear(n + time_dim + condition_dim, hidden)
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.output = nn.Linear(hidden, n)
        self.null_condition = nn.Parameter(torch.zeros(condition_dim))

    def forward(
        self, x: Tensor, tau: Tensor, condition: Tensor, drop: Tensor | None = None
    ) -> Tensor:
        """Return the (B, N) output; see `Denoiser`."""
        shown = hide(condition, self.null_condition, drop, self.n_visible)
        embedded = time_embedding(tau, self.time_dim).to(x.dtype)
        h = functional.silu(self.input(torch.cat([x, embedded, shown], dim=-1)))
        for block in self.blocks:
            h = h + functional.silu(block(h))
        return self.output(h)


class UNetDenoiser(nn.Module):
    """One-dimensional U-Net along the N projections; time and condition shift every block.

    Lengths that do not halve evenly are padded with zeros, and a depth that N is too short for is
    reduced to ⌊log2 N⌋ levels.

    Differs from the paper: widths C_i = C_in·2^(i-1) stop growing at `max_channels`; at depth 6
    they would hold most of the parameters in the two shortest levels.

    Args:
        n: N ≥ 2.
        condition_dim: C.
        depth: number of resolutions (Table II: 6).
        kernel: odd kernel size (Table II: 3).
        channels: C_in, the width of the first level.
        max_channels: largest width.
        time_dim: width of e_τ, even.
        n_visible: how many numbers of the condition are never hidden.

    Raises:
        ConfigError: a size that is not positive, N below 2, an even kernel, or an odd time_dim.
    """

    def __init__(
        self,
        n: int,
        condition_dim: int,
        depth: int = 6,
        kernel: int = 3,
        *,
        channels: int = 16,
        max_channels: int = 128,
        time_dim: int = 64,
        n_visible: int = 0,
    ) -> None:
        super().__init__()
        self.n_visible = n_visible
        _check_sizes(n, condition_dim, time_dim, depth=depth, kernel=kernel, channels=channels)
        if n < 2 or kernel % 2 == 0 or max_channels < channels:
            raise ConfigError(
                f"A U-Net needs n ≥ 2, an odd kernel and max_channels ≥ channels; got n={n}, "
                f"kernel={kernel}, channels={channels}, max_channels={max_channels}."
            )
        self.n, self.condition_dim, self.time_dim = n, condition_dim, time_dim
        self.levels = min(depth, n.bit_length() - 1)
        self.padded = -(-n // 2 ** (self.levels - 1)) * 2 ** (self.levels - 1)
        widths = [min(channels * 2**i, max_channels) for i in range(self.levels)]
        embed = 4 * channels
        self.null_condition = nn.Parameter(torch.zeros(condition_dim))
        self.embed = nn.Sequential(
            nn.Linear(time_dim + condition_dim, embed),
            nn.SiLU(),
            nn.Linear(embed, embed),
            nn.SiLU(),
        )
        self.entry = nn.Conv1d(1, widths[0], kernel, padding=kernel // 2)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_ConvBlock(a, a, embed, kernel) for a, _ in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(a, b, 2, stride=2) for a, b in pairs)
        self.middle = _ConvBlock(widths[-1], widths[-1], embed, kernel)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(b, a, 2, stride=2) for a, b in pairs[::-1])
        self.up = nn.ModuleList(_ConvBlock(2 * a, a, embed, kernel) for a, _ in pairs[::-1])
        self.exit = nn.Conv1d(widths[0], 1, kernel, padding=kernel // 2)

    def forward(
        self, x: Tensor, tau: Tensor, condition: Tensor, drop: Tensor | None = None
    ) -> Tensor:
        """Return the (B, N) output; see `Denoiser`."""
        shown = hide(condition, self.null_condition, drop, self.n_visible)
        embedded = time_embedding(tau, self.time_dim).to(x.dtype)
        context = self.embed(torch.cat([embedded, shown], dim=-1))
        h = self.entry(functional.pad(x, (0, self.padded - self.n)).unsqueeze(1))
        skips: list[Tensor] = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, context)
            skips.append(h)
            h = shrink(h)
        h = self.middle(h, context)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = block(torch.cat([grow(h), skips.pop()], dim=1), context)
        return self.exit(h).squeeze(1)[:, : self.n]


class _ConvBlock(nn.Module):
    """Two normalised convolutions with a residual; the context shifts the channels between."""

    def __init__(self, d_in: int, d_out: int, embed: int, kernel: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(math.gcd(8, d_in), d_in)
        self.conv_in = nn.Conv1d(d_in, d_out, kernel, padding=kernel // 2)
        self.shift = nn.Linear(embed, d_out)
        self.norm_out = nn.GroupNorm(math.gcd(8, d_out), d_out)
        self.conv_out = nn.Conv1d(d_out, d_out, kernel, padding=kernel // 2)
        self.skip = nn.Identity() if d_in == d_out else nn.Conv1d(d_in, d_out, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.conv_in(functional.silu(self.norm_in(x)))
        h = h + self.shift(context).unsqueeze(-1)
        return self.skip(x) + self.conv_out(functional.silu(self.norm_out(h)))


def hide(condition: Tensor, null: Tensor, drop: Tensor | None, n_visible: int) -> Tensor:
    """Return the condition (B, C) with null (C,) past `n_visible` where `drop` (B,) says so."""
    if drop is None:
        return condition
    hideable = torch.arange(condition.shape[-1], device=condition.device) >= n_visible
    return torch.where(drop.unsqueeze(-1) & hideable, null, condition)


def _check_sizes(n: int, condition_dim: int, time_dim: int, **others: int) -> None:
    sizes = {"n": n, "condition_dim": condition_dim, "time_dim": time_dim, **others}
    bad = {name: size for name, size in sizes.items() if size < 1}
    if bad or time_dim % 2:
        raise ConfigError(f"Sizes must be positive and time_dim even, got {bad or time_dim}.")
