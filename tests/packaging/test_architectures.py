"""LoRAs of sixteen architectures, with the heads that they are trained with, end to end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.peft_methods import Method, loaded, trained
from helpers.round_trips import FINEST
from helpers.tiny_models import ARCHITECTURES, build, error_of
from rankcast import pack
from rankcast.codec.container import Container
from rankcast.packaging.export import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT, on Conv1D
EXACT = 1e-3
"""Of an error that is 1 where no adapter arrived; the finest steps leave about 3e-4."""


@dataclass(frozen=True)
class Adapted:
    """A base model in a folder, a LoRA on it, and what the two say."""

    method: Method
    adapter: Path
    base_folder: Path
    wanted: Tensor

    def error_of(self, found: Tensor) -> float:
        return error_of(found, self.wanted, self.method.answers(build(self.method.model)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=ARCHITECTURES, scope="module")
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    usual = ARCHITECTURES[request.param]
    settings = {"r": 4, "lora_alpha": 8, "modules_to_save": list(usual.heads) or None}
    method = Method("LoraConfig", settings, request.param, usual.targets, noise=0.15)
    folder = tmp_path_factory.mktemp("adapted")
    adapter, wanted = trained(method, folder)
    build(request.param).save_pretrained(folder / "base")
    return Adapted(method, adapter, folder / "base", wanted)


@pytest.fixture(scope="module")
def container(adapted: Adapted) -> Container:
    return pack(adapted.adapter, **FINEST)


def test_the_adapter_changes_what_the_model_says(adapted: Adapted) -> None:
    """Without it an error of zero would say nothing; 0.33 is the smallest of the sixteen."""
    base = adapted.method.answers(build(adapted.method.model))
    assert (adapted.wanted - base).norm() > 0.25 * base.norm()


def test_the_exported_adapter_says_the_same(
    adapted: Adapted, container: Container, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(container, "peft", out, base_model=adapted.base_folder)
    assert adapted.error_of(loaded(adapted.method, out)) < EXACT


def test_the_merged_model_says_the_same(
    adapted: Adapted, container: Container, tmp_path: Path
) -> None:
    """Read with the class that the adapter was trained on, every tensor under its name."""
    export(container, "merged", tmp_path / "out", base_model=adapted.base_folder)
    model, report = type(build(adapted.method.model)).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert adapted.error_of(adapted.method.answers(model.eval())) < EXACT
