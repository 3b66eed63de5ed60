"""The number format of a forward pass, chosen by each learner."""

from dataclasses import replace

import pytest
import torch

from helpers.models import keyword_splits
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError
from rankcast.learner import precision
from rankcast.learner.precision import Precision, precision_for
from rankcast.learner.transformer import TransformerLearner

DATA = keyword_splits()
CPU = torch.device("cpu")
CONFIG = FinetuneConfig(model="tiny", total_steps=4, batch_size=8, r_max=2, warmup_steps=0)


@pytest.mark.parametrize(
    ("wanted", "is_causal", "multiplies", "expected"),
    [
        ("no", True, True, Precision("cpu")),
        ("bf16", False, False, Precision("cpu", torch.bfloat16, torch.bfloat16)),
        ("auto", False, True, Precision("cpu")),
        ("auto", True, True, Precision("cpu", torch.bfloat16, None)),
        ("auto", True, False, Precision("cpu")),
    ],
)
def test_formats_on_a_cpu(
    wanted: str,
    is_causal: bool,
    multiplies: bool,
    expected: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        precision.torch.cpu, "get_capabilities", lambda: {"amx_bf16": multiplies}, raising=True
    )
    config = replace(CONFIG, mixed_precision=wanted)
    assert precision_for(config, CPU, is_causal=is_causal) == expected


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        precision_for(replace(CONFIG, mixed_precision="fp16"), CPU, is_causal=False)


@pytest.mark.parametrize("training", [True, False])
def test_products_have_the_format_of_the_purpose(training: bool) -> None:
    matrix = torch.eye(4)
    with Precision("cpu", training=torch.bfloat16).autocast(training=training):
        found = (matrix @ matrix).dtype
    assert found is (torch.bfloat16 if training else torch.float32)


def test_only_fp16_scales_its_loss() -> None:
    assert Precision("cuda", torch.bfloat16).loss_scaler() is None
    assert isinstance(Precision("cpu", torch.float16).loss_scaler(), torch.amp.GradScaler)


def test_learners_of_one_process_may_differ() -> None:
    """Each computes as if it were alone, whichever was made last."""

    def alone(name: str) -> float:
        return TransformerLearner(replace(CONFIG, mixed_precision=name), DATA).train_step()

    expected = {name: alone(name) for name in ("bf16", "no")}
    both = {
        name: TransformerLearner(replace(CONFIG, mixed_precision=name), DATA)
        for name in ("no", "bf16")
    }
    assert {name: learner.train_step() for name, learner in both.items()} == expected
    assert expected["bf16"] != expected["no"]
