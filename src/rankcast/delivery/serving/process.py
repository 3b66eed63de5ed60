"""A server's processes: uvicorn, one worker or several, that end in order."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from rankcast.delivery.serving.logs import log_config
from rankcast.delivery.serving.protocol import PatientProtocol
from rankcast.delivery.serving.settings import ServerSettings
from rankcast.delivery.store import Store
from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AppFactory:
    """Makes the app, in whichever process calls it.

    Attributes:
        store: of the adapters.
        settings: what is allowed.
    """

    store: Store
    settings: ServerSettings

    def __call__(self) -> FastAPI:
        """Return the app."""
        from rankcast.delivery.server import create_app  # noqa: PLC0415 imports this package

        return create_app(self.store, self.settings)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where and how a server listens.

    Attributes:
        host: address.
        port: 0 for any that is free.
        workers: processes.
        grace_s: in which requests finish once the server is told to end [s].
        most_connections: of each worker; more are answered 503.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    grace_s: float = 30.0
    most_connections: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot listen.

        Raises:
            ConfigError: no worker, or a port that does not exist.
        """
        if self.workers < 1 or not 0 <= self.port < 2**16 or not self.grace_s > 0:
            raise ConfigError(
                f"A server has at least one worker, a port from 0 to 65535 and a positive grace, "
                f"got {self}."
            )


def serve(store: Store, settings: ServerSettings, listening: Listening) -> bool:
    """Serve until SIGINT or SIGTERM; requests under way then finish.

    Returns:
        Whether it ever listened; the log says why not.
    """
    config = uvicorn.Config(
        AppFactory(store, settings),
        factory=True,
        host=listening.host,
        port=listening.port,
        workers=listening.workers,
        http=PatientProtocol,
        ws="none",
        log_config=log_config(),
        access_log=False,
        server_header=False,
        limit_concurrency=listening.most_connections,
        timeout_graceful_shutdown=max(1, round(listening.grace_s)),
    )
    signal.signal(signal.SIGTERM, _end)  # uvicorn raises it again when it has ended in order
    if listening.workers == 1:
        server = uvicorn.Server(config)
        server.run()
        return server.started
    with tempfile.TemporaryDirectory(prefix="rankcast-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read by the workers
        sock = config.bind_socket()
        Multiprocess(config, sockets=[sock]).run()
        return True


def _end(number: int, frame: object) -> None:
    del number, frame
    sys.exit(0)
