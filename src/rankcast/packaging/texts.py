"""Which texts and which base model judge an adapter; no heavy imports, for command lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rankcast.config.learner import DatasetConfig, FinetuneConfig, check_answer_columns
from rankcast.errors import ConfigError

LEVEL_TEXTS = 32
"""On which the levels of a classifier's adapter are measured."""
CURVATURE_TEXTS = 128
"""On which the curvature of a language model's loss is measured."""
OnPass = Callable[[str, int, int], None]
"""Called with what is measured, how many of its passes or texts are done, and of how many."""


@dataclass(frozen=True)
class LevelTexts:
    """On how many training texts levels and curvature are measured.

    Attributes:
        n_texts: how many at most for levels; 0 measures none. None for `LEVEL_TEXTS`, and for 0 of
            a language model, whose passes take long.
        n_curvature: how many at most for the curvature; 0 measures none. None for
            `CURVATURE_TEXTS`, and for 0 of a classifier, where it brings nothing.
        on_pass: told of progress.

    Raises:
        ConfigError: less than 0.
    """

    n_texts: int | None = None
    n_curvature: int | None = None
    on_pass: OnPass | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for what, n in (("Levels are", self.n_texts), ("Curvature is", self.n_curvature)):
            if n is not None and n < 0:
                raise ConfigError(f"{what} measured on 0 texts or more, got {n}.")

    def of(self, objective: str) -> tuple[int, int]:
        """Return both numbers for an objective, `causal` or `classification`."""
        usual = (0, CURVATURE_TEXTS) if objective == "causal" else (LEVEL_TEXTS, 0)
        asked = self.n_texts, self.n_curvature
        levels, curvature = (u if a is None else a for u, a in zip(usual, asked, strict=True))
        return levels, curvature


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts and model, where an adapter's folder does not say. A run of rankcast knows its own."""

    texts: str | None = None
    """Texts: a file, a folder with one file a split, or a data set on the Hugging Face hub. With
    labels for a classifier; for a language model best prompts with answers, by which alone it is
    judged then. A run of rankcast knows its own."""
    held_out: str | None = None
    """File of texts to judge by, which are not trained on; a part of --texts by default."""
    base_model: str | None = None
    """The base model: a folder, or its name on the hub. A run knows its own."""
    text_column: str = "text"
    """Column of the texts in --texts."""
    label_column: str = "label"
    """Column of the classes in --texts."""
    prompt_column: str | None = None
    """Column of prompts in --texts, for a language model; goes with --completion-column."""
    completion_column: str | None = None
    """Column of what each prompt is to be answered with."""
    messages_column: str | None = None
    """Instead of both, column of chats: lists of messages with role and content, or their JSON."""
    batch_size: int | None = None
    """Texts of a training step and of a forward pass: fewer take less memory."""
    max_length: int | None = None
    """Tokens at which texts are cut."""

    def __post_init__(self) -> None:
        """Refuse columns that do not go together."""
        check_answer_columns(self.prompt_column, self.completion_column, self.messages_column)

    def data(self, known: DatasetConfig, objective: str) -> DatasetConfig:
        """Return where the texts are.

        Args:
            known: what a run knows of its own; kept unless `texts` is set.
            objective: `causal`, for which labels are not read, or `classification`.
        """
        if self.texts is None:
            return known
        return DatasetConfig(
            source=self.texts,
            text_column=self.text_column,
            label_column=self.label_column if objective == "classification" else None,
            prompt_column=self.prompt_column,
            completion_column=self.completion_column,
            messages_column=self.messages_column,
        )

    def sizes(self, config: FinetuneConfig) -> FinetuneConfig:
        """Return settings with the batch size and the longest text that were asked for."""
        if self.batch_size is not None:
            config = replace(config, batch_size=self.batch_size, eval_batch_size=self.batch_size)
        return config if self.max_length is None else replace(config, max_length=self.max_length)
