"""A small OPT, pre-trained for minutes on the texts at hand: a decoder where no hub is reached.

Its word pieces and their embeddings are borrowed from an encoder that is at hand; minutes are too
few to learn what words mean.

Shapes: B windows, S tokens.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.errors import DataError
from rankcast.learner.base_models import load_model
from rankcast.learner.objectives import SequenceClassification
from rankcast.records import IntArray
from rankcast.training.folder import load_state, save_state

PAD, END, UNKNOWN = "[PAD]", "[SEP]", "[UNK]"


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Size and pre-training of the decoder.

    Attributes:
        layers: of the decoder.
        width: of its hidden states.
        heads: of attention.
        words_of: model that lends its word pieces and their embeddings, as `load_model` takes it.
        vocabulary: how many of its pieces, besides single letters.
        init_std: of new weights; wider than OPT's, which is for wider layers.
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
    words_of: str = "minilm"
    vocabulary: int = 8000
    init_std: float = 0.06
    length: int = 128
    window: int = 64
    batch_size: int = 32
    steps: int = 240
    warmup_steps: int = 20
    lr: float = 3e-3
    save_every: int = 40
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.lr * min((step + 1) / self.warmup_steps, (1 + math.cos(math.pi * done)) / 2)


def shared_decoder(
    folder: Path, texts: Sequence[str], config: DecoderConfig, checkpoint: Path
) -> Path:
    """Return the folder of the pre-trained decoder; make it if nobody has.

    It appears whole or not at all: the second job to finish throws its own copy away.

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
    tokenizer, words = known_words(texts, config)
    tokens = _stream(texts, tokenizer, config.seed)
    if len(tokens) < config.window:
        raise DataError(
            f"Pre-training takes {config.window} tokens at least, the texts have {len(tokens)}."
        )
    model = _model(config, tokenizer, words)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=config.lr, weight_decay=0.01)
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
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % config.save_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(checkpoint, {**state, "step": step})
    return model.eval(), tokenizer


def known_words(texts: Sequence[str], config: DecoderConfig) -> tuple[Any, torch.Tensor]:
    """Return a tokenizer of the texts' most frequent word pieces, and (V, E) their embeddings.

    Pieces and embeddings are those of another model, `config.words_of`. Every text begins with
    the end token, as OPT's do.
    """
    from tokenizers import Tokenizer, models, processors  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    other = load_model(
        config.words_of, SequenceClassification(2), config.seed, train_texts=tuple(texts)
    )
    backend, vocabulary = other.tokenizer.backend_tokenizer, other.tokenizer.get_vocab()
    seen = Counter(piece for one in backend.encode_batch(list(texts)) for piece in one.tokens)
    frequent = sorted(seen, key=lambda piece: (-seen[piece], piece))[: config.vocabulary]
    letters = sorted(piece for piece in vocabulary if len(piece.removeprefix("##")) == 1)
    pieces = list(dict.fromkeys([PAD, END, UNKNOWN, *frequent, *letters]))
    core = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN)
    )
    core.normalizer, core.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, pieces.index(END))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=END,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=config.length,
    )
    table = other.model.get_input_embeddings().weight.detach()
    return tokenizer, table[[vocabulary[piece] for piece in pieces]].clone()


def _model(config: DecoderConfig, tokenizer: Any, words: torch.Tensor) -> Any:
    """Return an OPT with new weights but for the embeddings, which stay as they are."""
    from transformers import OPTConfig, OPTForCausalLM  # noqa: PLC0415

    shape = OPTConfig(
        vocab_size=len(words),
        hidden_size=config.width,
        word_embed_proj_dim=words.shape[1],
        ffn_dim=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.length,
        init_std=config.init_std,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model: Any = OPTForCausalLM(shape)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings.copy_(words)
    embeddings.requires_grad_(False)
    return model


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
