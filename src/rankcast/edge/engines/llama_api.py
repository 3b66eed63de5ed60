"""Talk with llama.cpp's server: list and scale adapters, see whether it sleeps, ask what it says.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx2

from rankcast.errors import DeliveryError, UnavailableError

_MOST_WORDS = 512
"""Next tokens that are asked for; a rarer one is taken to be as likely as the last of them."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that a server was started with.

    Attributes:
        number: by which requests name it.
        path: of its file, as the server was told.
        scale: by which it counts now.
    """

    number: int
    path: str
    scale: float


@dataclass(frozen=True)
class LlamaApi:
    """A running server.

    Attributes:
        url: such as http://127.0.0.1:8080.
        timeout_s: for a request [s]; one that wakes the server loads the model.
        api_key: of the server; None if it asks for none.
    """

    url: str
    timeout_s: float = 120.0
    api_key: str | None = field(default=None, repr=False)

    @cached_property
    def _client(self) -> httpx2.Client:
        """A client that keeps no connection: the server may end, and another begin, in between."""
        unkept = httpx2.Limits(max_keepalive_connections=0)
        return httpx2.Client(timeout=self.timeout_s, limits=unkept)

    def adapters(self) -> tuple[ServedAdapter, ...]:
        """Return the adapters that it has loaded; wakes it if it sleeps.

        Raises:
            UnavailableError: it does not answer.
        """
        answer = self._ask("GET", "/lora-adapters")
        try:
            return tuple(
                ServedAdapter(int(x["id"]), str(x["path"]), float(x["scale"])) for x in answer
            )
        except (TypeError, ValueError, KeyError) as error:
            raise self._strange("/lora-adapters", error) from error

    def set_scales(self, adapters: Iterable[ServedAdapter]) -> None:
        """Let adapters count by their scales, all in one step; others count no longer.

        Raises:
            DeliveryError: it refuses, or does not answer.
        """
        scales = [{"id": x.number, "scale": x.scale} for x in adapters]
        self._ask("POST", "/lora-adapters", scales)

    def is_sleeping(self) -> bool:
        """Return whether it has put the model away; does not wake it.

        Raises:
            UnavailableError: it does not answer.
        """
        return self._ask("GET", "/props").get("is_sleeping") is True

    def logprobs(
        self, prompt: Sequence[int], tokens: Sequence[int], scales: Mapping[int, float]
    ) -> list[float]:
        """Return the logarithms of the probabilities of next tokens [nats].

        Args:
            prompt: token ids.
            tokens: ids of next tokens.
            scales: of adapters by number, for this request alone.

        Raises:
            DeliveryError: it refuses, or does not answer.
        """
        body = {
            "prompt": list(prompt), "n_predict": 1, "n_probs": _MOST_WORDS, "temperature": 0.0,
            "cache_prompt": False, "ignore_eos": True,  # an end is told without probabilities
            "lora": [{"id": number, "scale": scale} for number, scale in scales.items()],
        }  # fmt: skip
        answer = self._ask("POST", "/completion", body)
        try:
            words = answer["completion_probabilities"][0]["top_logprobs"]
            found = {int(word["id"]): float(word["logprob"]) for word in words}
            least = min(found.values())
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise self._strange("/completion", error) from error
        return [found.get(token, least) for token in tokens]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        try:
            answer = self._client.request(
                method, f"{self.url.rstrip('/')}{path}", json=body, headers=headers
            )
            if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
                raise UnavailableError(
                    f"llama-server at {self.url} still loads its model; sync again."
                )
            if not answer.is_success:
                raise DeliveryError(
                    f"llama-server at {self.url} refused {path} with status {answer.status_code}: "
                    f"{answer.text[:300]}"
                )
            return answer.json()
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise UnavailableError(
                f"llama-server at {self.url} does not answer ({error}). Is it running?"
            ) from error
        except ValueError as error:
            raise self._strange(path, error) from error

    def _strange(self, path: str, error: Exception) -> DeliveryError:
        return DeliveryError(
            f"What answers at {self.url}{path} is no llama-server that is understood ({error!r})."
        )
