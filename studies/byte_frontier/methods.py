"""The methods that are compared: PEFT's configuration of each, its sizes, where tuning starts.

Every method adapts the same base model, and the classifier trains beside it. Numbers that a seed
gives (projections, places of frequencies) are drawn from the seed of the job and are not saved.
Methods are not given their authors' sizes, but sizes that aim at few bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rankcast.adapters.projections import find_projections
from studies.baselines.adalora import AdaLoraSchedule
from studies.baselines.fourierft import sum_waves
from studies.baselines.lora_xs import freeze_into_lora_xs

ADAPTER = "default"
HEAD_LR = 2e-3
"""Of the classifier, whatever the method: it is the same layer for all."""
Size = Mapping[str, Any]
Settings = Mapping[str, Any]
"""What tuning has chosen: `lr`, and for LoRA `scale`, which is alpha / r."""


@dataclass(frozen=True)
class Target:
    """What a method is put on.

    Attributes:
        model: the base model with its classifier.
        head: names of the modules that train in full.
        seed: of what the method draws.
        steps: of the training; 0 where nothing is trained.
    """

    model: Any
    head: tuple[str, ...]
    seed: int
    steps: int = 0

    def named(self, kinds: str | None = None) -> list[str]:
        """Return the names of the linear maps of some kinds, such as `q v`; of all for None."""
        wanted = None if kinds is None else tuple(kinds.split())
        return [p.name for p in find_projections(self.model, wanted).projections]

    def common(self, kinds: str | None = None) -> dict[str, Any]:
        """Return what PEFT's configurations have in common."""
        return {
            "task_type": "SEQ_CLS",
            "target_modules": self.named(kinds),
            "modules_to_save": list(self.head),
        }


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning.

    Attributes:
        label: what readers call it.
        configure: returns PEFT's configuration.
        sizes: the method's own knob at the sizes that are compared, the first tuned first.
        lrs: learning rates from which tuning starts.
        ratio: of neighbouring learning rates.
        scales: alpha / r among which tuning chooses at the first size; empty where there is none.
        finish: changes PEFT's model after it was made; None for nothing.
        faster: what the learning rate of parameters is multiplied with, by a part of their name.
        times_steps: training steps as a multiple of the budget of all.
        adaptive: whether it prunes ranks while it trains (AdaLoRA).
    """

    label: str
    configure: Callable[[Target, Size, Settings], Any]
    sizes: Mapping[str, Size]
    lrs: tuple[float, ...]
    ratio: float = 3.0
    scales: tuple[float, ...] = ()
    finish: Callable[[Any, int], None] | None = None
    faster: Mapping[str, float] = field(default_factory=dict)
    times_steps: int = 1
    adaptive: bool = False

    @property
    def is_lora(self) -> bool:
        """Whether this is LoRA as it is."""
        return self.configure is _lora

    def wrap(self, target: Target, size: str, settings: Settings) -> Any:
        """Return PEFT's model; what it draws comes from the target's seed alone."""
        from peft import get_peft_model  # noqa: PLC0415 takes seconds

        config = self.configure(target, self.sizes[size], settings)
        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
            torch.default_generator.manual_seed(target.seed)
            model = get_peft_model(target.model, config, adapter_name=ADAPTER)
        if self.finish is not None:
            self.finish(model, target.seed)
        return model


def _peft(name: str, target: Target, kinds: str | None = None, **more: Any) -> Any:
    """Return one of PEFT's configurations by its name."""
    import peft  # noqa: PLC0415 takes seconds

    return getattr(peft, name)(**target.common(kinds) | more)


def _lora(target: Target, size: Size, settings: Settings) -> Any:
    alpha = settings["scale"] * size["r"]
    return _peft("LoraConfig", target, lora_alpha=alpha, lora_dropout=0.0, **size)


def _adalora(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    steps = max(target.steps, 4)  # whoever only reads an adapter trains for none
    schedule = AdaLoraSchedule.derive(steps, size["r"], 1)
    return _peft(
        "AdaLoraConfig", target, lora_alpha=schedule.init_r, lora_dropout=0.0,
        init_r=schedule.init_r, target_r=size["r"], tinit=schedule.t_init,
        tfinal=schedule.t_final, deltaT=schedule.delta_t, total_step=steps,
        orth_reg_weight=schedule.orthogonality_weight,
    )  # fmt: skip


def _lora_xs(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    return _peft("LoraConfig", target, lora_alpha=size["r"], lora_dropout=0.0, **size)


def _vera(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    drawn = {"projection_prng_key": target.seed, "save_projection": False}
    return _peft("VeraConfig", target, **size, **drawn)


def _vblora(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    return _peft("VBLoRAConfig", target, save_only_topk_weights=True, **size)


def _fourierft(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    return _peft("FourierFTConfig", target, random_loc_seed=target.seed, **size)


def _unilora(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    return _peft("UniLoraConfig", target, proj_seed=target.seed, save_indices=False, **size)


def _tinylora(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    # PEFT adds the number of the layer to the seed
    drawn = {"projection_seed": 1000 * target.seed, "save_projection": False}
    return _peft("TinyLoraConfig", target, **size, **drawn)


def _ia3(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    feedforward = target.named("fc2") if "fc2" in size["kinds"].split() else []
    return _peft("IA3Config", target, feedforward_modules=feedforward, **size)


def _ln_tuning(target: Target, size: Size, settings: Settings) -> Any:
    del settings
    kinds = size["norms"].split()
    norms = [n for n, _ in target.model.named_modules() if any(n.endswith(k) for k in kinds)]
    return _peft("LNTuningConfig", target, target_modules=norms)


def _finish_lora_xs(model: Any, seed: int) -> None:
    freeze_into_lora_xs(model, ADAPTER, torch.Generator().manual_seed(seed))


def _finish_fourierft(model: Any, seed: int) -> None:
    del seed
    sum_waves(model, ADAPTER)


METHODS: Mapping[str, Method] = {
    "lora": Method(
        "LoRA", _lora, {str(r): {"r": r} for r in (1, 2, 4, 8)},
        (5e-4, 1e-3, 2e-3, 4e-3), ratio=2.0, scales=(1.0, 2.0, 8.0),
    ),
    "lora_long": Method(
        "LoRA, three times the steps,", _lora, {str(r): {"r": r} for r in (1, 8)},
        (5e-4, 1e-3, 2e-3), ratio=2.0, scales=(2.0,), times_steps=3,
    ),
    "adalora": Method(
        "AdaLoRA", _adalora, {str(r): {"r": r} for r in (1, 2)},
        (1e-3, 2e-3, 4e-3, 8e-3), ratio=2.0, adaptive=True,
    ),
    "lora_xs": Method(
        "LoRA-XS", _lora_xs, {str(r): {"r": r} for r in (8, 4)},
        (1e-3, 3e-3, 1e-2, 3e-2), finish=_finish_lora_xs,
    ),
    "tinylora": Method(
        "TinyLoRA", _tinylora, {str(u): {"r": 2, "u": u} for u in (64, 16)},
        (3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "unilora": Method(
        "UniLoRA", _unilora, {str(d): {"r": 4, "theta_d_length": d} for d in (4000, 1000)},
        (3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "fourierft": Method(
        "FourierFT", _fourierft, {str(n): {"n_frequency": n} for n in (64, 16)},
        (3e-2, 1e-1, 3e-1, 1.0), finish=_finish_fourierft,
    ),
    "vera": Method(
        "VeRA", _vera, {"256": {"r": 256, "kinds": "q v"}},
        (3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "vblora": Method(
        "VB-LoRA", _vblora,
        {
            "64x64": {"r": 4, "num_vectors": 64, "vector_length": 64, "kinds": "q v"},
            "32x128": {"r": 2, "num_vectors": 32, "vector_length": 128, "kinds": None},
        },
        (1e-3, 3e-3, 1e-2, 3e-2), faster={"vblora_logits": 10.0},
    ),
    "ia3": Method(
        "IA³", _ia3, {"k-v-fc2": {"kinds": "k v fc2"}},
        (3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "ln": Method(
        "LN tuning", _ln_tuning, {"all": {"norms": "LayerNorm"}},
        (1e-3, 3e-3, 1e-2, 3e-2),
    ),
}  # fmt: skip
"""By the name that stands in settings of jobs. VB-LoRA's authors give the logits of its bank ten
times the learning rate of its vectors."""

OTHERS = tuple(name for name, method in METHODS.items() if not method.is_lora)
"""What LoRA is compared with: AdaLoRA, and the methods of few parameters."""
