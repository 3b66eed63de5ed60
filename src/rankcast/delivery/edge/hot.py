"""A model that is served while its adapter is kept up to date (needs torch and PEFT)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rankcast.delivery.edge.client import EdgeClient
from rankcast.delivery.edge.in_process import PeftModelActivator
from rankcast.errors import RankcastError


@contextmanager
def hot_adapter(
    model: nn.Module, client: EdgeClient, every_s: float | None = 60.0
) -> Iterator[PeftModelActivator]:
    """Serve a model with an adapter that is kept up to date while requests run.

    What this device had in force is put on the model first, which needs no network; then a thread
    syncs at once and every `every_s`. Errors of syncs are in the client's state, not here.

    Args:
        model: a base model of transformers.
        client: its own activator is not used.
        every_s: between two syncs [s]; None for one sync, before the block begins.

    Yields:
        What to call instead of the model.

    Raises:
        RankcastError: what is on this device cannot be put on the model; with `every_s=None` also
            whatever the sync raises.
    """
    activator = PeftModelActivator(model)
    bound = client.with_activator(activator)
    bound.resume()
    if every_s is None:
        bound.sync()
        yield activator
        return
    stop = threading.Event()
    thread = threading.Thread(target=_keep_syncing, args=(bound, every_s, stop), daemon=True)
    thread.start()
    try:
        yield activator
    finally:
        stop.set()
        thread.join()


def _keep_syncing(client: EdgeClient, every_s: float, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(RankcastError):  # it is in the state; the next sync tries again
            client.sync()
        stop.wait(every_s)
