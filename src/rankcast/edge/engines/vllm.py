"""Load adapters into a running vLLM server.

The server runs with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, and sees the
folder of versions under the same path. `load_inplace` replaces an adapter under its name without a
gap (vLLM 0.15 and later); before that it is unloaded and loaded, and requests between the two are
refused by vLLM.

Source: https://docs.vllm.ai/en/v0.15.0/api/vllm/entrypoints/serve/lora/protocol/
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from rankcast.edge.activate import Candidate
from rankcast.edge.engines.folder import AdapterFolder
from rankcast.errors import DeliveryError, UnavailableError


@dataclass(frozen=True)
class VllmEndpoint:
    """Loads adapters into a running vLLM under one name.

    Attributes:
        url: of the server, such as http://127.0.0.1:8000.
        name: that requests give as `model`.
        target: folder of the versions, which the server can read.
        timeout_s: for a request [s].
        api_key: of the server; None if it asks for none.
    """

    url: str
    name: str
    target: Path
    timeout_s: float = 60.0
    api_key: str | None = field(default=None, repr=False)

    @property
    def folder(self) -> AdapterFolder:
        """The versions on disk."""
        return AdapterFolder("vllm", self.target)

    def active(self) -> str | None:
        """Return the label of the version that the server has loaded."""
        card = self._card()
        return None if card is None else Path(str(card.get("root"))).name

    def activate(self, candidate: Candidate) -> None:
        """Write and load, and see that the server lists it; else load the version before again.

        Raises:
            DeliveryError: the server does not answer, or does not take the adapter.
            CodecError: vLLM cannot carry it.
        """
        label, before = candidate.prefix.label, self.active()
        self.folder.write(candidate)
        try:
            self._load(label, replace=before is not None)
            self._check_listed(label)
        except DeliveryError:
            if before is not None and self.folder.version(before).is_dir():
                self._load(before, replace=self._card() is not None)
            raise
        self.folder.switch(label)

    def restore(self, candidate: Candidate) -> None:
        """Load an adapter that was proved before."""
        self.activate(candidate)

    def deactivate(self) -> None:
        """Unload the adapter."""
        if self._card() is not None:
            self._post("unload_lora_adapter", {"lora_name": self.name})
        self.folder.switch(None)

    def discard(self, keep: AbstractSet[str]) -> None:
        """Remove all other versions from the disk."""
        self.folder.discard(keep)

    def _check_listed(self, label: str) -> None:
        if self.active() != label:
            raise DeliveryError(f"vLLM at {self.url} does not list {self.name} as {label}.")

    def _load(self, label: str, *, replace: bool) -> None:
        asked = {"lora_name": self.name, "lora_path": str(self.folder.version(label))}
        if not replace:
            self._post("load_lora_adapter", asked)
            return
        try:
            self._post("load_lora_adapter", {**asked, "load_inplace": True})
        except DeliveryError:
            self._post("unload_lora_adapter", {"lora_name": self.name})
            self._post("load_lora_adapter", asked)

    def _card(self) -> dict[str, Any] | None:
        """Return what the server says of the adapter; None if it has none of the name."""
        try:
            answer = httpx2.get(
                f"{self.url.rstrip('/')}/v1/models", headers=self._headers(), timeout=self.timeout_s
            )
            answer.raise_for_status()
            cards = answer.json()["data"]
            return next((card for card in cards if card["id"] == self.name), None)
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                f"vLLM at {self.url} does not say which models it has ({error}). Is it running?"
            ) from error

    def _post(self, what: str, body: dict[str, Any]) -> None:
        try:
            answer = httpx2.post(
                f"{self.url.rstrip('/')}/v1/{what}", json=body, headers=self._headers(),
                timeout=self.timeout_s,
            )  # fmt: skip
        except httpx2.HTTPError as error:
            raise UnavailableError(
                f"vLLM at {self.url} does not answer ({error}). Is it running?"
            ) from error
        if not answer.is_success:
            raise DeliveryError(
                f"vLLM at {self.url} refused {what} with status {answer.status_code}: "
                f"{answer.text[:300]}. It needs --enable-lora, a --max-lora-rank that is large "
                f"enough, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )

    def _headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
