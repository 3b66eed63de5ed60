"""Copies of a base model are told from other models by some rows of every weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.gguf_bases import tiny_causal_model, write_base
from rankcast.codec.formats.base_folder import BaseFolder
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.formats.gguf_base import GgufBase
from rankcast.errors import ModelError
from rankcast.packaging.copies import folder_error, gguf_error


def saved(model: Any, folder: Path) -> BaseFolder:
    model.save_pretrained(folder)
    return BaseFolder.open(folder)


def error_of(path: Path, base: BaseFolder) -> float:
    return gguf_error(GgufBase.open(path), base, GgufArchitecture.of_gguf(path))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_a_copy_is_as_far_away_as_its_precision(kind: str, tmp_path: Path) -> None:
    """Rounding to 11 bits of mantissa is off by 2^-12/sqrt(3) and less, about 2e-4."""
    model = tiny_causal_model(kind)
    base = saved(model, tmp_path / "base")
    assert error_of(write_base(model, tmp_path / "same.gguf"), base) == 0.0
    half = error_of(write_base(model, tmp_path / "half.gguf", dtype=np.float16), base)
    assert 1e-5 < half < 5e-4


@pytest.mark.parametrize("part", ["q_proj.weight", "down_proj.weight", "norm.weight"])
def test_one_changed_weight_is_another_model(part: str, tmp_path: Path) -> None:
    base = saved(tiny_causal_model("llama"), tmp_path / "base")
    other = tiny_causal_model("llama")
    with torch.no_grad():
        name = next(n for n, _ in other.named_parameters() if n.endswith(part))
        weight = other.get_parameter(name)
        weight += 0.05 * weight.std() + 0.01
    with pytest.raises(ModelError, match=r"no copy of .* differs by"):
        error_of(write_base(other, tmp_path / "other.gguf"), base)


def test_another_model_of_the_same_or_another_kind_is_refused(tmp_path: Path) -> None:
    base = saved(tiny_causal_model("llama"), tmp_path / "base")
    again = write_base(tiny_causal_model("llama", seed=1), tmp_path / "again.gguf")
    with pytest.raises(ModelError, match=r"again\.gguf is no copy of .*base"):
        error_of(again, base)
    with pytest.raises(ModelError, match="no copy of"):
        error_of(write_base(tiny_causal_model("gpt2"), tmp_path / "gpt2.gguf"), base)


def test_folders_are_compared_likewise(tmp_path: Path) -> None:
    base = saved(tiny_causal_model("llama"), tmp_path / "base")
    half = saved(tiny_causal_model("llama").to(torch.bfloat16), tmp_path / "half")
    assert 1e-4 < folder_error(half, base) < 5e-3  # 2^-9/sqrt(3) and less
    other = saved(tiny_causal_model("llama", seed=1), tmp_path / "other")
    with pytest.raises(ModelError, match="differs by"):
        folder_error(other, base)
