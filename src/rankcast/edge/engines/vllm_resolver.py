"""Let vLLM find a device's active adapter by its name: a plugin of vLLM.

`rankcast edge` keeps the adapter in a device's folder. vLLM, started with `RANKCAST_DEVICE` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING`, asks its resolvers when a request names a model that it has not
loaded; the one here answers with the folder of the adapter that the device's state calls active, if
its files are those that were written. Every other name is left to other resolvers.

vLLM keeps what it has loaded and does not ask again. `rankcast edge sync --vllm-url` replaces it in
a running server. A resolver cannot: vLLM passes on what it returns with every later request, so
that with `load_inplace` the adapter would be read from the disk each time.

Source: lora/resolver.py, plugins/__init__.py and entrypoints/openai/models/serving.py of vLLM
0.33.0. Every process of a server loads the plugin; only the one that answers requests asks.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rankcast.errors import ConfigError, DeliveryError, RankcastError

DEVICE, OUTPUT = "RANKCAST_DEVICE", "RANKCAST_DEVICE_OUTPUT"
BASE_MODEL, MAX_RANK = "RANKCAST_BASE_MODEL", "RANKCAST_MAX_LORA_RANK"
ALLOWED = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
_OF_CLASSES = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""PEFT's words for tasks whose model has a head of its own."""
_REFUSED: Mapping[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value != "LORA",
    "task_type": lambda value: value in _OF_CLASSES,
    "modules_to_save": bool,
    "use_dora": bool,
    "lora_bias": bool,
    "bias": lambda value: value not in (None, "none"),
    "target_parameters": bool,
    "layer_replication": bool,
}
"""Fields of an adapter's configuration, and which values vLLM cannot serve."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceFolder:
    """Where a device keeps an adapter.

    Attributes:
        folder: of the state, `--folder` of `rankcast edge`.
        output: of the versions, its `--output`.
    """

    folder: Path
    output: Path


@dataclass(frozen=True)
class DeviceAdapters:
    """The active adapters of this machine's devices, by name.

    Attributes:
        devices: one for each adapter.
        base_model: what vLLM calls the base model of the adapters; None for the name in them.
        max_rank: of the server (`--max-lora-rank`); None leaves it to vLLM to refuse more.
    """

    devices: tuple[DeviceFolder, ...]
    base_model: str | None = None
    max_rank: int | None = None

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> DeviceAdapters:
        """Return what environment variables describe; no devices without `RANKCAST_DEVICE`.

        Raises:
            ConfigError: other folders of versions than devices, or a rank that is no number.
        """
        folders = _paths(variables.get(DEVICE, ""))
        outputs = _paths(variables.get(OUTPUT, "")) or [folder / "adapter" for folder in folders]
        if len(outputs) != len(folders):
            raise ConfigError(
                f"{OUTPUT} names {len(outputs)} folders and {DEVICE} {len(folders)}; name one for "
                f"each, separated by {os.pathsep!r}, or leave {OUTPUT} out."
            )
        rank = variables.get(MAX_RANK, "")
        if rank and not (rank.isdecimal() and int(rank)):
            raise ConfigError(f"{MAX_RANK} is the server's --max-lora-rank, not {rank!r}.")
        devices = tuple(map(DeviceFolder, folders, outputs))
        return cls(devices, variables.get(BASE_MODEL) or None, int(rank) if rank else None)

    def find(self, base_model: str, name: str) -> Path | None:
        """Return the folder of an active adapter; None for a name that no device has.

        Args:
            base_model: name or folder of the model that vLLM serves.
            name: of the adapter.

        Raises:
            DeliveryError: a state or an adapter that is damaged or not there; one that vLLM cannot
                serve, or of another base model.
        """
        from rankcast.edge.state import read_state  # noqa: PLC0415 only where vLLM asks

        damaged = None
        for device in self.devices:
            try:
                state = read_state(device.folder)
            except DeliveryError as error:
                damaged = damaged or error
                continue
            if state is None or state.adapter != name:
                continue
            if state.active is None:
                raise DeliveryError(
                    f"No release of {name} is active in {device.folder} yet. Run rankcast edge "
                    f"sync."
                )
            return self._checked(device.output, state.active.label, base_model)
        if damaged is not None:  # it may be the one
            raise damaged
        return None

    def _checked(self, output: Path, label: str, base_model: str) -> Path:
        """Return the folder of a version that vLLM can serve."""
        from rankcast.edge.engines.folder import AdapterFolder  # noqa: PLC0415 only where vLLM asks

        folder = AdapterFolder("vllm", output).checked(label)
        try:
            config = dict(json.loads((folder / "adapter_config.json").read_text("utf-8")))
            rank = int(config["r"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DeliveryError(
                f"{folder} has no readable adapter_config.json ({error!r}). Sync again."
            ) from error
        self._check_kind(label, config)
        if self.max_rank is not None and rank > self.max_rank:
            raise DeliveryError(
                f"{label} has rank {rank}, and this vLLM takes up to {self.max_rank}. Start it "
                f"with --max-lora-rank {rank} or more, or publish a file of a smaller rank."
            )
        self._check_base(label, config.get("base_model_name_or_path"), base_model)
        return folder

    def _check_kind(self, label: str, config: Mapping[str, Any]) -> None:
        for field, is_refused in _REFUSED.items():
            if field in config and is_refused(config[field]):
                raise DeliveryError(
                    f"{label} has {field} {config[field]!r}, which vLLM cannot serve as a LoRA. "
                    f"Serve it with PEFT (--format peft), or merge it into its model: rankcast "
                    f"export --format merged."
                )

    def _check_base(self, label: str, named: str | None, served: str) -> None:
        wanted = self.base_model or named
        if wanted is not None and _last(wanted) != _last(served):
            raise DeliveryError(
                f"{label} adapts {wanted}, and this vLLM serves {served}. If that is the same "
                f"model under another name, start vLLM with {BASE_MODEL}={served}."
            )


class DeviceResolver:
    """What vLLM asks; `register` makes it one of vLLM's own class.

    Args:
        adapters: of this machine's devices.
    """

    def __init__(self, adapters: DeviceAdapters) -> None:
        self._adapters, self._said = adapters, ""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """Return vLLM's request for the active adapter of a name.

        None for a name that is not ours, and for an adapter that must not be loaded; the log then
        says why.
        """
        try:
            folder = await asyncio.to_thread(self._adapters.find, base_model_name, lora_name)
        except RankcastError as error:
            if str(error) != self._said:  # whoever asks may ask again and again
                _logger.error("%s is not loaded: %s", lora_name, error)  # noqa: TRY400 no trace
            self._said = str(error)
            return None
        if folder is None:
            return None
        self._said = ""
        request = import_module("vllm.lora.request").LoRARequest
        return request(lora_name=lora_name, lora_int_id=_id(folder), lora_path=str(folder))


def register() -> None:
    """Register the resolver with vLLM, if `RANKCAST_DEVICE` names a device.

    Raises:
        ConfigError: variables that make no sense, so that vLLM does not start with them.
    """
    adapters = DeviceAdapters.of(os.environ)
    if not adapters.devices:
        return
    if os.environ.get(ALLOWED, "0").strip().lower() not in ("1", "true"):
        _logger.warning("%s is set, but vLLM asks nobody without %s=1.", DEVICE, ALLOWED)
    for device in adapters.devices:
        if not device.folder.is_dir():
            _logger.warning("%s is no folder yet; rankcast edge sync makes it.", device.folder)
    vllm = import_module("vllm.lora.resolver")
    kind = type("RankcastResolver", (DeviceResolver, vllm.LoRAResolver), {})
    vllm.LoRAResolverRegistry.register_resolver("rankcast", kind(adapters))


def _paths(text: str) -> list[Path]:
    return [Path(part).absolute() for part in text.split(os.pathsep) if part]


def _last(name: str) -> str:
    """Return the last part of a model's name, or of its folder."""
    from rankcast.naming import public_name  # noqa: PLC0415 only where vLLM asks

    return (public_name(name) or name).rpartition("/")[2].lower()


def _id(folder: Path) -> int:
    """Return a number of a version, from 1; vLLM puts one of its own in its place."""
    return int(hashlib.sha256(folder.name.encode()).hexdigest()[:7], 16) + 1
