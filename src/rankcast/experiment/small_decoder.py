"""A small OPT, pre-trained for minutes on the texts at hand: a decoder where no hub is reached.

Shapes: B windows, S tokens.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.errors import DataError
from rankcast.records import IntArray
from rankcast.run.folder import load_state, save_state

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Size and pre-training of the decoder.

    Attributes:
        layers: of the decoder.
        width: of its hidden states.
        heads: of attention.
        vocabulary: largest number of tokens.
        length: most tokens of a text.
        window: S, tokens that are trained on together.
        batch_size: B.
        steps: of pre-training.
        warmup_steps: over which the learning rate rises; then it falls as a cosine.
        lr: its peak.
        save_every: steps between two checkpoints.
        seed: of weights and order.
    """

    layers: int = 4
    width: int = 192
    heads: int = 6
    vocabulary: int = 6000
    length: int = 128
    window: int = 64
    batch_size: int = 32
    steps: int = 400
    warmup_steps: int = 40
    lr: float = 2e-3
    save_every: int = 50
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.lr * min((step + 1) / self.warmup_steps, (1 + math.cos(math.pi * done)) / 2)


def shared_decoder(
    folder: Path, texts: Sequence[str], config: DecoderConfig, checkpoint: Path
) -> Path:
    """Return the folder of the pre-trained decoder; make it if nobody has.

    It appears whole or not at all: whoever is second to finish throws its own copy away.

    Args:
        folder: shared by all who use the decoder.
        texts: without labels.
        config: size and pre-training.
        checkpoint: of the caller's own, to continue from.
    """
    if not folder.is_dir():
        own = checkpoint.with_suffix(".decoder")
        shutil.rmtree(own, ignore_errors=True)
        model, tokenizer = pretrain(texts, config, checkpoint)
        model.save_pretrained(own)
        tokenizer.save_pretrained(own)
        try:
            own.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(own)
        checkpoint.unlink(missing_ok=True)
    return folder


def pretrain(texts: Sequence[str], config: DecoderConfig, checkpoint: Path) -> tuple[Any, Any]:
    """Return a causal language model trained on the texts, and its tokenizer.

    Raises:
        DataError: fewer tokens than a batch takes.
    """
    tokenizer = byte_tokenizer(texts, config)
    tokens = _stream(texts, tokenizer, config.seed)
    if len(tokens) < config.window:
        raise DataError(
            f"Pre-training takes {config.window} tokens at least, the texts have {len(tokens)}."
        )
    model = _model(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    step = 0
    if checkpoint.is_file():
        state = load_state(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
    model.train()
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        batch = torch.from_numpy(_windows(tokens, config, step))
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % config.save_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(checkpoint, {**state, "step": step})
    return model.eval(), tokenizer


def byte_tokenizer(texts: Sequence[str], config: DecoderConfig) -> Any:
    """Return a byte-level BPE tokenizer like OPT's, learned from the texts in lower case.

    Every text begins with the end token, as OPT's do.
    """
    from tokenizers import ByteLevelBPETokenizer, processors  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    special = [PAD, END, UNKNOWN]
    learned = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    learned.train_from_iterator(
        sorted(set(texts)), config.vocabulary, special_tokens=special, show_progress=False
    )
    core: Any = learned._tokenizer  # noqa: SLF001 the wrapper has no other way out
    core.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, special.index(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=config.length,
    )


def _model(config: DecoderConfig, tokenizer: Any) -> Any:
    from transformers import OPTConfig, OPTForCausalLM  # noqa: PLC0415

    shape = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        word_embed_proj_dim=config.width,
        ffn_dim=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.length,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return OPTForCausalLM(shape)


def _stream(texts: Sequence[str], tokenizer: Any, seed: int) -> IntArray:
    """Return the tokens of all texts one after the other, the texts in a random order."""
    order = np.random.default_rng(seed).permutation(len(texts))
    encoded = tokenizer([texts[i] for i in order], truncation=True)["input_ids"]
    return np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])


def _windows(tokens: IntArray, config: DecoderConfig, step: int) -> IntArray:
    """Return (B, S) stretches of the stream that begin at random places."""
    rng = np.random.default_rng([config.seed, step])
    starts = rng.integers(0, len(tokens) - config.window + 1, config.batch_size)
    return tokens[starts[:, None] + np.arange(config.window)]
