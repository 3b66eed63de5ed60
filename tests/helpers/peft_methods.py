"""For every method that PEFT has, and for the variants of LoRA, a small adapter of its kind.

An adapter is filled with seeded noise on top of its initial values, so that it changes what the
model says. `METHODS` has one entry for each name in PEFT's registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.tensors import seeded
from helpers.tiny_models import HIDDEN, LENGTH, MODELS, answers, build

ATTENTION = ("q_proj", "v_proj")
UNRELATED_SEED = 999  # of the global generator when a second machine loads an adapter


@dataclass(frozen=True)
class Method:
    """One kind of adapter.

    Attributes:
        config: PEFT's configuration class by name.
        settings: what it is given beside the task type.
        model: the tiny model that it goes on.
        targets: its `target_modules`; None for methods that have none.
        noise: standard deviation of what is added to its trainable parameters.
        inputs: what the forward pass takes beside the model's own inputs.
        experts: whether `adapters` has to name folders of LoRAs.
        converted: saved as a LoRA on the untouched base model, as PEFT converts PiSSA and OLoRA.
        saving: options of `save_pretrained`.
        options: of `rankcast.pack`; `base_model` and `initial_adapter` true for their folders.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = "Llama"
    targets: tuple[str, ...] | None = ATTENTION
    noise: float = 0.1
    inputs: Callable[[], Mapping[str, Tensor]] = dict
    experts: bool = False
    converted: bool = False
    saving: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_config(self, folder: Path) -> Any:
        """Return PEFT's configuration; `folder` takes the LoRAs of a mixture."""
        import peft

        settings = {name: v() if callable(v) else v for name, v in self.settings.items()}
        settings["task_type"] = MODELS[self.model].task
        if self.targets is not None:
            settings["target_modules"] = list(self.targets)
        if self.experts:
            settings["adapters"] = {
                name: str(trained(METHODS["LORA"], folder / name, seed=n + 5)[0])
                for n, name in enumerate("01")
            }
        return getattr(peft, self.config)(**settings)

    def answers(self, model: Any) -> Tensor:
        """Return what a model with or without this adapter says, beside virtual tokens."""
        found = answers(model, self.model, **self.inputs() if hasattr(model, "peft_config") else {})
        return found[:, -LENGTH:]


def trained(method: Method, folder: Path, seed: int = 1) -> tuple[Path, Tensor]:
    """Save an adapter of this kind; return its folder and what the model says with it."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    config = method.to_config(folder)
    base = build(method.model)
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    more = dict(method.saving)
    if method.converted or method.options.get("initial_adapter"):
        initial = _initial(model, folder / "initial")
    if method.converted:
        more["path_initial_model_for_weight_conversion"] = str(initial)
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(method.noise * torch.randn(parameter.shape, generator=generator))
    wanted = method.answers(model.eval())
    saved = folder / "saved"
    model.save_pretrained(saved, **more)
    return saved, wanted


def _initial(model: Any, folder: Path) -> Path:
    """Save what PiSSA or OLoRA began with, as PEFT's guide says, for the conversion to a LoRA."""
    config = model.peft_config["default"]
    how, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder)
    config.init_lora_weights = how
    return folder


def loaded(method: Method, folder: Path) -> Tensor:
    """Return what an untouched base model says with the adapter in a folder of PEFT's."""
    from peft import PeftModel

    base = build(method.model)
    torch.manual_seed(UNRELATED_SEED)
    return method.answers(PeftModel.from_pretrained(base, folder).eval())


def _task(number: int) -> Callable[[], Mapping[str, Tensor]]:
    return lambda: {"task_ids": torch.tensor([number])}


def _lora(
    *,
    model: str = "Llama",
    targets: tuple[str, ...] = ATTENTION,
    noise: float = 0.1,
    converted: bool = False,
    saving: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Method:
    settings = {"r": 4, "lora_alpha": 8} | settings
    more = {"converted": converted, "saving": saving or {}, "options": options or {}}
    return Method("LoraConfig", settings, model, targets, noise, **more)


def _monteclora() -> Any:
    from peft.tuners.lora.config import MontecloraConfig

    return MontecloraConfig()


_PROMPT = {"num_virtual_tokens": 4}
METHODS: dict[str, Method] = {
    "LORA": _lora(),
    "ADALORA": Method("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10}),
    "ADAMSS": Method("AdamssConfig", {"r": 8, "num_subspaces": 2}),
    "ADAPTION_PROMPT": Method(
        "AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}, targets=None, noise=0.5
    ),
    "BEFT": Method("BeftConfig", model="OPT", targets=("v_proj",)),
    "BOFT": Method("BOFTConfig", {"boft_block_size": 4}),
    "C3A": Method("C3AConfig", {"block_size": 8}),
    "CARTRIDGE": Method("CartridgeConfig", _PROMPT, targets=None, noise=0.5),
    "CPT": Method(
        "CPTConfig",
        {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1] * 3, "cpt_tokens_type_mask": [1, 2, 2]},
        targets=None,
    ),
    "DEFT": Method("DeftConfig", {"r": 4}),
    "DELORA": Method("DeloraConfig", {"r": 4}),
    "FOURIERFT": Method("FourierFTConfig", {"n_frequency": 40}, noise=1.0),
    "FROD": Method("FrodConfig", {"progressbar": False}),
    "GLORA": Method("GloraConfig", {"r": 4}),
    "GRALORA": Method("GraloraConfig", {"r": 4, "alpha": 8}),
    "HIRA": Method("HiraConfig", {"r": 4}),
    "HRA": Method("HRAConfig", {"r": 4}),
    "IA3": Method(
        "IA3Config",
        {"feedforward_modules": ["down_proj"]},
        targets=("k_proj", "v_proj", "down_proj"),
        noise=0.3,
    ),
    "LILY": Method("LilyConfig", {"r": 4}),
    "LN_TUNING": Method("LNTuningConfig", model="BERT", targets=("LayerNorm",)),
    "LOHA": Method("LoHaConfig", {"r": 4, "alpha": 8}, noise=0.3),
    "LOKR": Method("LoKrConfig", {"r": 4, "alpha": 8}),
    "MISS": Method("MissConfig", {"r": 4}),
    "OFT": Method("OFTConfig", {"oft_block_size": 8}),
    "SHIRA": Method("ShiraConfig", {"r": 4, "random_seed": 3}),
    "PROMPT_TUNING": Method("PromptTuningConfig", _PROMPT, targets=None),
    "MULTITASK_PROMPT_TUNING": Method(
        "MultitaskPromptTuningConfig", _PROMPT | {"num_tasks": 2}, targets=None, inputs=_task(1)
    ),
    "OSF": Method("OSFConfig", {"effective_rank": 4}),
    "P_TUNING": Method("PromptEncoderConfig", _PROMPT | {"encoder_hidden_size": 16}, targets=None),
    "PEANUT": Method("PeanutConfig", {"r": 4}),
    "POLY": Method("PolyConfig", {"r": 4, "n_tasks": 2, "n_skills": 3}, inputs=_task(1)),
    "PREFIX_TUNING": Method("PrefixTuningConfig", _PROMPT, targets=None, noise=0.5),
    "PSOFT": Method("PsoftConfig", {"r": 4, "psoft_alpha": 4}),
    "PVERA": Method("PveraConfig", {"r": 8}),
    "RANDLORA": Method("RandLoraConfig", {"r": 4, "randlora_alpha": 8}),
    "ROAD": Method("RoadConfig", {"group_size": 8}),
    "SHADOW": Method("ShadowConfig", {"r": 4}, targets=None),
    "SUPERTUNING": Method("SupertuningConfig", {"sparsity": 0.9}),
    "TINYLORA": Method("TinyLoraConfig", {"u": 8}, noise=0.5),
    "TRAINABLE_TOKENS": Method(
        "TrainableTokensConfig", {"token_indices": [3, 5, 9]}, targets=("embed_tokens",)
    ),
    "UNILORA": Method("UniLoraConfig", {"r": 4, "theta_d_length": 64}, noise=0.5),
    "VBLORA": Method("VBLoRAConfig", {"num_vectors": 16, "vector_length": 8}, noise=0.5),
    "VERA": Method("VeraConfig", {"r": 8}, noise=0.5),
    "WAVEFT": Method("WaveFTConfig", {"n_frequency": 40}, noise=1.0),
    "XLORA": Method("XLoraConfig", {"hidden_size": HIDDEN}, targets=None, experts=True),
}
"""PEFT's methods by their name in its registry."""

VARIANTS: dict[str, Method] = {
    "LoRA with patterns of rank and alpha": _lora(
        rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 3}
    ),
    "LoRA on transposed layers (GPT-2)": _lora(model="GPT-2", targets=("c_attn",)),
    "LoRA on convolutions": _lora(model="convolutional", targets=("first", "second")),
    "LoRA on an embedding": _lora(targets=("embed_tokens", "q_proj")),
    "LoRA on an embedding, `--embeddings`": _lora(
        targets=("embed_tokens", "q_proj"), options={"embeddings": True}
    ),
    "LoRA on an embedding, `--base-model`": _lora(
        targets=("embed_tokens", "q_proj"), options={"base_model": True}
    ),
    "LoRA on an embedding, `save_embedding_layers=False`": _lora(
        targets=("embed_tokens", "q_proj"), saving={"save_embedding_layers": False}
    ),
    "LoRA on parameters (Mixtral's experts)": _lora(
        r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"], model="Mixtral"
    ),
    "LoRA on repeated layers": _lora(layer_replication=[(0, 2), (1, 2)]),
    "LoRA and a head": _lora(model="RoBERTa", targets=("query", "value")),
    "LoRA and norms in full": _lora(modules_to_save=["input_layernorm"]),
    "LoRA and an output layer in full": _lora(modules_to_save=["lm_head"]),
    "LoRA and an embedding in full": _lora(modules_to_save=["embed_tokens"]),
    "LoRA and an embedding in full, `--embeddings`": _lora(
        modules_to_save=["embed_tokens"], options={"embeddings": True}
    ),
    "LoRA and trainable tokens": _lora(trainable_token_indices={"embed_tokens": [3, 5, 9]}),
    "LoRA with `lora_bias`": _lora(lora_bias=True, model="OPT"),
    'LoRA with `bias="all"`': _lora(bias="all", model="OPT"),
    'LoRA with `bias="lora_only"`': _lora(bias="lora_only", model="OPT"),
    "rsLoRA": _lora(use_rslora=True),
    "DoRA": _lora(use_dora=True),
    "PiSSA": _lora(init_lora_weights="pissa", noise=0.05),
    "PiSSA, `--base-model`": _lora(
        init_lora_weights="pissa", noise=0.05, options={"base_model": True}
    ),
    "PiSSA, `--initial-adapter`": _lora(
        init_lora_weights="pissa", noise=0.05, options={"initial_adapter": True}
    ),
    "PiSSA, converted by PEFT": _lora(init_lora_weights="pissa", noise=0.05, converted=True),
    "PiSSA by random SVD, `--initial-adapter`": _lora(
        init_lora_weights="pissa_niter_4", noise=0.05, options={"initial_adapter": True}
    ),
    "OLoRA": _lora(init_lora_weights="olora", noise=0.05),
    "OLoRA, `--base-model`": _lora(
        init_lora_weights="olora", noise=0.05, options={"base_model": True}
    ),
    "OLoRA, `--initial-adapter`": _lora(
        init_lora_weights="olora", noise=0.05, options={"initial_adapter": True}
    ),
    "OLoRA, converted by PEFT": _lora(init_lora_weights="olora", noise=0.05, converted=True),
    "LoRA begun orthogonal": _lora(init_lora_weights="orthogonal", noise=0.05),
    "aLoRA": _lora(alora_invocation_tokens=[7, 8]),
    "KaSA": _lora(kasa_config={}),
    "MonteCLoRA": _lora(monteclora_config=_monteclora),
    "VeLoRA": _lora(velora_config={"num_groups": 4}),
    "BD-LoRA": _lora(
        use_bdlora={
            "target_modules_bd_a": ["q_proj"],
            "target_modules_bd_b": ["v_proj"],
            "nblocks": 2,
        }
    ),
    "VB-LoRA, the chosen vectors only": Method(
        "VBLoRAConfig",
        {"num_vectors": 16, "vector_length": 8, "save_only_topk_weights": True},
        noise=0.5,
    ),
    "VeRA without its projection": Method(
        "VeraConfig", {"r": 8, "save_projection": False}, noise=0.5
    ),
    "UniLoRA with its indices": Method(
        "UniLoraConfig",
        {"r": 4, "theta_d_length": 64, "save_indices": True},
        noise=0.5,
    ),
    "SHiRA without a seed": Method("ShiraConfig", {"r": 4}),
    "LoHa on convolutions": Method(
        "LoHaConfig", {"r": 4, "alpha": 8}, "convolutional", ("first", "second"), noise=0.3
    ),
    "LoKr on convolutions": Method(
        "LoKrConfig", {"r": 4, "alpha": 8}, "convolutional", ("first", "second"), noise=0.3
    ),
    "IA³ and a head": Method(
        "IA3Config", {"feedforward_modules": []}, "BERT", ("key", "value"), noise=0.3
    ),
    "Prefix tuning with a projection": Method(
        "PrefixTuningConfig",
        _PROMPT | {"prefix_projection": True, "encoder_hidden_size": 16},
        targets=None,
        noise=0.5,
    ),
}
"""Variants of LoRA and of the other methods, and what travels beside a LoRA."""
