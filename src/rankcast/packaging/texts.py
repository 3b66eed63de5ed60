"""Which texts and which base model judge an adapter; no heavy imports, for command lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts and model, where an adapter's folder does not say. A run of rankcast knows its own."""

    texts: str | None = None
    """Labelled texts: a file, a folder with one file a split, or a data set on the Hugging Face
    hub. A run of rankcast knows its own."""
    base_model: str | None = None
    """The base model: a folder, or its name on the hub. A run knows its own."""
    text_column: str = "text"
    """Column of the texts in --texts."""
    label_column: str = "label"
    """Column of the classes in --texts."""
