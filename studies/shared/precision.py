"""The type in which a processor computes fastest."""

from __future__ import annotations

from functools import cache

import torch


@cache
def fast_type() -> torch.dtype:
    """Return the type in which this processor answers fastest: bfloat16 if it multiplies in it."""
    found = torch.cpu.get_capabilities()
    has = any(found.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return torch.bfloat16 if has else torch.float32
