"""The base model: Gemma 3 270M out of a GGUF, or a tiny decoder to see that the study runs.

The GGUF is dequantised once and rounded to bfloat16, which is the base that adapters train on and
are judged on. Where the processor computes in bfloat16, frozen weights are kept in it, and only
they: what they answer, the embedding and all sums of layers are float32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankcast.errors import ConfigError, ModelError
from rankcast.files import new_folder, only_one
from rankcast.learner.base_models import load_model
from rankcast.learner.objectives import CausalLM
from studies.harness.spec import RunContext
from studies.shared.precision import fast_type

VARIABLE = "RANKCAST_GEMMA_GGUF"
NAME = "google/gemma-3-270m"
GEMMA, TINY = "gemma3-270m", "tiny"
"""Models by the name that stands in settings of jobs."""
_TINY_WORDS = 600
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_HASHED_BYTES = 2**20


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
        folder: configuration, weights and tokenizer as transformers has them.
        gguf: the file that it was made from, which engines run; None for the tiny one.
        digest: of that file, or of the tiny one's weights.
    """

    folder: Path
    gguf: Path | None
    digest: str


def base_of(model: str, context: RunContext, texts: Sequence[str] = ()) -> Base:
    """Return the base model of a job; whoever needs it first makes it.

    Args:
        model: `GEMMA` or `TINY`.
        context: of the job.
        texts: from which the tiny one has its vocabulary.

    Raises:
        ConfigError: Gemma is asked for, and the variable `RANKCAST_GEMMA_GGUF` names no file.
        ModelError: the file is no model that transformers reads.
    """
    place = context.scratch.parent.parent / "base"
    if model == TINY:
        folder = place / TINY
        with only_one(place / f"{TINY}.lock", "making the base model", wait=True):
            if not folder.is_dir():
                with new_folder(folder) as partial:
                    _write_tiny(partial, texts)
        return Base(folder, None, _digest(folder / "model.safetensors"))
    gguf = gguf_file()
    digest = _digest(gguf)
    folder = place / f"{model}-{digest[:16]}"
    with only_one(place / f"{model}.lock", "making the base model", wait=True):
        if not folder.is_dir():
            with new_folder(folder) as partial:
                _write_dequantised(partial, gguf)
    return Base(folder, gguf, digest)


def gguf_file() -> Path:
    """Return the file that `RANKCAST_GEMMA_GGUF` names.

    Raises:
        ConfigError: the variable is not set, or names no file.
    """
    named = os.environ.get(VARIABLE)
    if not named or not Path(named).is_file():
        state = f"names {named}, which is no file" if named else "is not set"
        raise ConfigError(
            f"This study adapts Gemma 3 270M, and the variable {VARIABLE} {state}. Set it to a "
            f"GGUF of that model, such as gemma-3-270m-it-Q4_K_M.gguf. --quick runs without."
        )
    return Path(named).resolve()


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(_HASHED_BYTES):
            found.update(part)
    return found.hexdigest()


def _write_dequantised(folder: Path, gguf: Path) -> None:
    """Write a GGUF as a folder of transformers, in bfloat16.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    try:
        given = {"gguf_file": gguf.name}
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **given)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, **given)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"transformers cannot read {gguf} ({error}). Name a GGUF of Gemma 3 270M in {VARIABLE}."
        ) from error
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_tiny(folder: Path, texts: Sequence[str]) -> None:
    """Write a decoder of two layers and random weights, with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    pad, unknown, begin, end = _SPECIAL
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=_TINY_WORDS, special_tokens=list(_SPECIAL))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, _SPECIAL.index(begin))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, bos_token=begin, eos_token=end
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
        max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def load_base(folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Return model and tokenizer for nobody else to use, all weights frozen and in float32."""
    base = load_model(str(folder), CausalLM(), seed)
    base.model.requires_grad_(requires_grad=False)
    base.model.set_attn_implementation("eager")  # quicker than the fused kernel for short texts
    return base.model, base.tokenizer


class LoweredLinear(nn.Linear):
    """A frozen linear map that multiplies in the type of its weights, and answers in float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's own name for it
        """Return the map of an input of any type."""
        return nn.functional.linear(input.to(self.weight.dtype), self.weight, self.bias).float()


def round_frozen(model: nn.Module) -> None:
    """Keep frozen linear maps in the type that the processor computes in.

    The forward pass, which runs in that type (`torch.autocast`), would convert them every time. The
    output layer is untied from the embedding, which stays float32.
    """
    if fast_type() is torch.float32:
        return
    for module in model.modules():
        if type(module) is nn.Linear and not any(p.requires_grad for p in module.parameters()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                rounded = nn.Parameter(parameter.detach().to(fast_type()), requires_grad=False)
                setattr(module, name, rounded)
            module.__class__ = LoweredLinear  # in place, whoever holds the module


def lowered() -> Any:
    """Return the context in which the model runs: in bfloat16 where the processor does."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_type() is torch.bfloat16)
