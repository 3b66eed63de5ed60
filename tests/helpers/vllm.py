"""As much of vLLM as its LoRA resolvers and adapters meet, written from the interface of 0.33.

`ServingModels` is what answers requests for a model's name, `Worker` what reads adapters, and
`modules` the two modules that a plugin imports.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.numpy import load_file

from helpers.waiting import DEADLOCK_S


@dataclass(eq=False)
class LoRARequest:
    """An adapter under a name; without a number from 1 or a path there is none."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    load_inplace: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(self.lora_int_id)
        assert self.lora_path


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class Registry:
    """Of one process."""

    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def get_supported_resolvers(self) -> Any:
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        return self.resolvers[resolver_name]


def modules() -> dict[str, ModuleType]:
    """Return the modules of a process that has registered nothing, for `sys.modules`."""
    made = {name: ModuleType(name) for name in ("vllm", "vllm.lora")}
    resolver, request = ModuleType("vllm.lora.resolver"), ModuleType("vllm.lora.request")
    vars(resolver).update(LoRAResolver=LoRAResolver, LoRAResolverRegistry=Registry())
    vars(request).update(LoRARequest=LoRARequest)
    return made | {"vllm.lora.resolver": resolver, "vllm.lora.request": request}


def check_interface(resolver: Any, request: Any) -> None:
    """Assert that modules have what the plugin needs of vLLM's."""
    asked = inspect.signature(resolver.LoRAResolver.resolve_lora).parameters
    assert list(asked) == ["self", "base_model_name", "lora_name"]
    assert inspect.iscoroutinefunction(resolver.LoRAResolver.resolve_lora)
    registry = resolver.LoRAResolverRegistry
    registered = inspect.signature(registry.register_resolver).parameters
    assert list(registered) == ["resolver_name", "resolver"]
    made = request.LoRARequest(lora_name="a", lora_int_id=1, lora_path="/a")
    assert (made.lora_name, made.lora_int_id, made.lora_path) == ("a", 1, "/a")
    assert made.load_inplace is False
    named = {f.name for f in fields(LoRARequest)}
    assert named <= set(inspect.signature(request.LoRARequest).parameters)
    for wrong in ({"lora_int_id": 0, "lora_path": "/a"}, {"lora_int_id": 1}):
        try:
            request.LoRARequest(lora_name="a", **wrong)
        except (ValueError, AssertionError):
            continue
        raise AssertionError(wrong)


class Worker:
    """Reads an adapter whose number it does not have, or again if the request says so.

    Attributes:
        weights: of each adapter, by number.
        loads: paths that were read, in order.
    """

    def __init__(self, max_rank: int) -> None:
        self.max_rank = max_rank
        self.weights: dict[int, dict[str, Any]] = {}
        self.loads: list[str] = []

    def add(self, request: LoRARequest) -> None:
        if request.lora_int_id in self.weights and not request.load_inplace:
            return
        folder = Path(request.lora_path)
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if config["r"] > self.max_rank or config.get("modules_to_save"):
            raise ValueError(f"LoRA rank {config['r']} is greater than {self.max_rank}.")
        self.loads.append(request.lora_path)
        self.weights[request.lora_int_id] = load_file(folder / "adapter_model.safetensors")


class ServingModels:
    """Adapters by name: asks resolvers for those that it has not, and then no more.

    Args:
        registry: of resolvers, as it is when the server starts.
        model: that it serves.
        max_rank: of adapters.
    """

    def __init__(self, registry: Registry, model: str, max_rank: int = 16) -> None:
        names = registry.get_supported_resolvers()
        self.resolvers = [registry.get_resolver(name) for name in names]
        self.model, self.worker = model, Worker(max_rank)
        self.requests: dict[str, LoRARequest] = {}
        self.number = 0
        self.asked: list[str] = []

    async def generate(self, name: str) -> int:
        """Return the status of a request for a model's name."""
        if name != self.model and name not in self.requests:
            status = await self._resolve(name)
            if status != 200:
                return status
        if name in self.requests:
            self.worker.add(self.requests[name])
        return 200

    async def _resolve(self, name: str) -> int:
        self.number, found = self.number + 1, False
        for resolver in self.resolvers:
            self.asked.append(name)
            request = await resolver.resolve_lora(self.model, name)
            if request is None:
                continue
            found, request.lora_int_id = True, self.number
            try:
                self.worker.add(request)
            except (OSError, ValueError):
                continue
            self.requests[name] = request
            return 200
        return 400 if found else 404

    def load(self, name: str, path: str, *, inplace: bool) -> int:
        """Return the status of `load_lora_adapter`."""
        if name in self.requests and not inplace:
            return 400
        self.number += 1
        known = self.requests.get(name)
        number = self.number if known is None else known.lora_int_id
        request = LoRARequest(name, number, path, load_inplace=inplace)
        try:
            self.worker.add(request)
        except (OSError, ValueError):
            return 500
        request.load_inplace = False
        self.requests[name] = request
        return 200


class VllmServer(ThreadingHTTPServer):
    """The endpoints of `ServingModels`."""

    daemon_threads = True

    def __init__(self, models: ServingModels) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.posts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: VllmServer
    timeout = DEADLOCK_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        loaded = self.server.models.requests.values()
        cards = [{"id": r.lora_name, "root": r.lora_path} for r in loaded]
        self._answer(200, {"data": [{"id": self.server.models.model, "root": "base"}, *cards]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        models, what = self.server.models, self.path.rpartition("/")[2]
        self.server.posts.append({"what": what, **body})
        if what == "completions":
            status = asyncio.run(models.generate(body["model"]))
        elif what == "load_lora_adapter":
            inplace = body.get("load_inplace", False)
            status = models.load(body["lora_name"], body["lora_path"], inplace=inplace)
        else:
            status = 404 if models.requests.pop(body["lora_name"], None) is None else 200
        self._answer(status, {})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
