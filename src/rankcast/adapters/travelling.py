"""Ranks that travel with the weights: whoever loads an adapter's weights gets their ranks, too.

What `transformers.Trainer` or PEFT writes holds all `r_max` components of each projection. Read at
other ranks than it was saved at, it is another model. So each layer adds its active rank to what
is saved, as `<projection>.lora_rank`, and takes it back whenever torch or PEFT loads weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankcast.adapters.layer import ElasticState
from rankcast.errors import CheckpointError

_LOG = logging.getLogger("rankcast.adapters")
_NAME = "lora_rank"  # PEFT saves what stands in its layers and begins with lora_


class _TravellingRank(nn.Module):
    """The active rank of one layer as an entry of its `state_dict()`; it has no parameters.

    Attributes:
        loaded: the rank that came with the weights that were loaded last, if one did.
    """

    def __init__(self, state: ElasticState, r_max: int) -> None:
        super().__init__()
        self.elastic, self.r_max = state, r_max
        self.loaded: int | None = None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add the rank; as a float, which is what readers of adapters expect."""
        del keep_vars
        rank = float(self.elastic.ranks[self.elastic.index])
        destination[prefix + self.elastic.adapter] = torch.tensor([rank])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any, **__: Any) -> None:
        """Make the saved rank active, if there is one.

        Raises:
            CheckpointError: it is no rank of this layer.
        """
        key = prefix + self.elastic.adapter
        saved: Tensor | None = state_dict.get(key)
        if saved is None:
            return
        if saved.flatten().tolist() not in [[rank] for rank in range(self.r_max + 1)]:
            raise CheckpointError(
                f"{key} holds {saved.tolist()} and no rank from 0 to {self.r_max}: the weights are "
                f"damaged, load another checkpoint."
            )
        self.loaded = self.elastic.ranks[self.elastic.index] = int(saved)


def let_ranks_travel(tuner: nn.Module, layers: Sequence[Any]) -> None:
    """Save the ranks of elastic layers with their weights, and restore them at every load.

    Args:
        tuner: PEFT's model, which holds all layers. Weights that are loaded through it or what
            wraps it, without ranks, are reported in the log; the active ranks stay.
        layers: the elastic layers.
    """
    for layer in layers:
        state: ElasticState = layer.elastic
        setattr(layer, _NAME, _TravellingRank(state, layer.lora_A[state.adapter].shape[0]))
    tuner.register_load_state_dict_pre_hook(_report_missing)


def loaded_ranks(layers: Sequence[Any]) -> list[int] | None:
    """Return the ranks that came with the weights that were loaded last; None if not all came."""
    ranks = [getattr(layer, _NAME).loaded for layer in layers]
    return None if None in ranks else ranks


def _report_missing(tuner: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Warn if there are weights of a layer, but not its rank, among what is about to be loaded."""
    lacking = []
    for name, module in tuner.named_modules(prefix=prefix.removesuffix(".")):
        if not isinstance(module, _TravellingRank):
            continue
        adapter = module.elastic.adapter
        weights = f"{name.removesuffix(_NAME)}lora_A.{adapter}"
        if weights in state and f"{name}.{adapter}" not in state:
            module.loaded = None
            lacking.append(name)
    if lacking:
        _LOG.warning(
            "The weights that are being loaded lack %d ranks, such as %s: they were saved by an "
            "earlier version or another program, or are damaged. The active ranks stay, which "
            "gives wrong results unless the weights were saved at them. Set the right ones with "
            "ElasticAdapter.set_ranks, or with RankcastCallback.load and the checkpoint's folder.",
            len(lacking),
            lacking[0],
        )
