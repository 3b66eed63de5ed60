"""Running out of memory, in a sentence that says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rankcast.errors import OutOfMemoryError

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


@contextmanager
def shortage_told(what: str, remedy: str) -> Iterator[None]:
    """Turn a shortage of memory inside a `with` block into an error of ours.

    Args:
        what: was being done.
        remedy: which options to lower.

    Raises:
        OutOfMemoryError: memory is short.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(f"There is not enough memory {what}. {remedy}") from error
    except RuntimeError as error:
        if isinstance(error, OutOfMemoryError) or not _is_shortage(error):
            raise
        raise OutOfMemoryError(f"There is not enough memory {what}. {remedy}") from error


def _is_shortage(error: RuntimeError) -> bool:
    """Return whether torch's allocator on the CPU says that there is no more."""
    return any(sign in str(error).casefold() for sign in _SIGNS)
