"""EVA's ranks, as PEFT computes them: by the variance of each projection's input.

Shapes: `N` projections, `R` = r_max. Batches are mappings of keyword arguments of the model. The
base model is asked: an adapter's own update plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import ConfigError, DataError
from rankcast.records import FloatArray, IntArray

_PREFIX = "base_model.model."


def eva_ranks(
    adapter: ElasticAdapter,
    batches: Sequence[Mapping[str, Tensor]],
    mean_rank: int,
    *,
    rho: float | None = None,
    tau: float = 0.99,
    max_passes: int = 2000,
) -> IntArray:
    """Return the (N,) ranks that PEFT's EVA gives out at N·mean_rank components.

    Args:
        adapter: tells projections and r_max; switched off meanwhile.
        batches: gone through again and again until the directions settle. Each needs at least
            `mean_rank`·ρ tokens.
        mean_rank: PEFT's r.
        rho: most that a projection may get, as a multiple of `mean_rank`; None stands for r_max.
        tau: cosine similarity at which a direction counts as settled.
        max_passes: give up after so many forward passes.

    Raises:
        ConfigError: a rank outside 1..r_max, or ρ below 1 or such that ranks exceed r_max.
        DataError: no batches, or the directions have not settled.
    """
    r_max = adapter.layout.r_max
    if not 1 <= mean_rank <= r_max:
        raise ConfigError(f"The mean rank must lie in 1..r_max = {r_max}, got {mean_rank}.")
    rho = r_max / mean_rank if rho is None else rho
    if rho < 1 or round(mean_rank * rho) > r_max:
        raise ConfigError(
            f"ρ must lie in 1..r_max / mean rank = {r_max / mean_rank:.4g}, got {rho}."
        )
    directions, _ = _run(adapter, batches, mean_rank, rho=rho, tau=tau, max_passes=max_passes)
    if directions is None:
        raise DataError(
            f"EVA's directions have not settled after {max_passes} forward passes: give larger or "
            f"more batches, a lower tau, or a lower rank."
        )
    names = [_PREFIX + p.name for p in adapter.layout.projections]
    return np.array([len(directions[name]) for name in names], dtype=np.int64)


def eva_scores(
    adapter: ElasticAdapter,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    tau: float = 0.99,
    max_passes: int = 200,
) -> FloatArray:
    """Return (N, R) explained-variance ratios of PEFT's EVA, of which any budget's ranks follow.

    EVA orders components by them alone: `ScoredAllocator(…, per_bit=False)`. Projections with the
    same input, such as q, k and v, have the same scores.

    Differs from `eva_ranks`: every projection is followed until all R of its directions have
    settled or `max_passes` is reached, so ratios are a little better known than at a lower rank.

    Args:
        adapter: tells projections and r_max; switched off meanwhile.
        batches: of at least r_max tokens each.
        tau: cosine similarity at which a direction counts as settled.
        max_passes: forward passes after which the ratios are taken as they are.

    Raises:
        DataError: no batches, or none with r_max tokens.
    """
    r_max = adapter.layout.r_max
    _, watch = _run(adapter, batches, r_max, rho=1.0, tau=tau, max_passes=max_passes)
    return np.stack([watch.ratios(_PREFIX + p.name, r_max) for p in adapter.layout.projections])


class _EnoughPassesError(Exception):
    """Ends EVA, which has no limit of its own."""


class _Watch:
    """Runs the model for EVA, counts the passes and keeps hold of EVA's hooks.

    PEFT returns directions only; the ratios that its ranks come from live in its hooks.
    """

    def __init__(self, max_passes: int) -> None:
        self._left = max_passes
        self._pca: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}

    def __call__(self, model: Any, inputs: Mapping[str, Tensor]) -> Any:
        """Run the model: the `forward_fn` of PEFT."""
        from peft.tuners.lora.eva import SVDHook  # noqa: PLC0415 takes seconds

        for name, hook in _hooks(model):
            (self._pca if isinstance(hook, SVDHook) else self._inputs)[name] = hook
        if self._left == 0:
            raise _EnoughPassesError
        self._left -= 1
        return model(**inputs)

    def ratios(self, name: str, r_max: int) -> FloatArray:
        """Return (R,) explained-variance ratios of a projection's input."""
        mine = self._inputs[name].hashed_inputs[0]
        alike = (k for k, hook in self._inputs.items() if hook.hashed_inputs[0] == mine)
        pca = next(self._pca[key].svd for key in alike if key in self._pca)
        if not hasattr(pca, "explained_variance_ratio_"):
            raise DataError(
                f"No batch has r_max = {r_max} tokens, as EVA needs: give larger batches."
            )
        ratios = pca.explained_variance_ratio_.double().cpu().numpy()[:r_max]
        return np.pad(ratios, (0, r_max - len(ratios)))


def _run(
    adapter: ElasticAdapter,
    batches: Sequence[Mapping[str, Tensor]],
    rank: int,
    *,
    rho: float,
    tau: float,
    max_passes: int,
) -> tuple[dict[str, Tensor] | None, _Watch]:
    """Return PEFT's directions by name of projection, None if they have not settled."""
    from peft import EvaConfig, LoraConfig  # noqa: PLC0415 takes seconds
    from peft.tuners.lora.eva import get_eva_state_dict  # noqa: PLC0415

    if not batches:
        raise DataError("EVA needs at least one batch.")
    config = LoraConfig(
        r=rank,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=rho, tau=tau, use_label_mask=False),
    )
    watch, model = _Watch(max_passes), adapter.model
    training = model.training
    try:
        directions = get_eva_state_dict(
            model,
            list(batches),
            config,
            forward_fn=watch,
            prepare_model_inputs_fn=_mask,
            prepare_layer_inputs_fn=_attended,
            show_progress_bar=False,
        )
    except _EnoughPassesError:
        return None, watch
    finally:
        for module in model.modules():
            hooks = module._forward_hooks  # noqa: SLF001 PEFT has dropped the handles
            for key in [k for k, hook in hooks.items() if _is_of_eva(hook)]:
                del hooks[key]
        model.train(training)
    return directions, watch


def _mask(inputs: Mapping[str, Tensor], _: Any) -> Tensor | None:
    """Return (B, S) which positions are tokens, None where nothing says."""
    mask = inputs.get("attention_mask")
    return None if mask is None else mask.bool()


def _attended(layer_input: Any, mask: Tensor | None, _: str) -> Tensor:
    """Return the inputs of a projection at all tokens, one a row.

    PEFT's own function takes (B, S, d_in) only; OPT gives its fc1 and fc2 (B·S, d_in).
    """
    x: Tensor = layer_input if isinstance(layer_input, Tensor) else layer_input[0]
    rows = x.reshape(-1, x.shape[-1])
    return rows if mask is None or mask.numel() != len(rows) else rows[mask.reshape(-1)]


def _hooks(model: Any) -> list[tuple[str, Any]]:
    """Return EVA's hooks by name of the module."""
    return [
        (name, hook)
        for name, module in model.named_modules()
        for hook in module._forward_hooks.values()  # noqa: SLF001 PEFT keeps them nowhere else
        if _is_of_eva(hook)
    ]


def _is_of_eva(hook: Any) -> bool:
    from peft.tuners.lora.eva import HashHook, SVDHook  # noqa: PLC0415 takes seconds

    return isinstance(hook, HashHook | SVDHook)
