"""The processes of a server: uvicorn, one worker or several, their logs, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from rankcast.errors import ConfigError, DeliveryError
from rankcast.release.store import Store
from rankcast.server.app import create_app
from rankcast.server.settings import ServerSettings

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

HEAD_TIMEOUT_S = 10.0
LARGEST_HEAD = 2**16
"""Bytes."""
_BACKLOG = 2048
_WORKER_SILENCE_S = 120
"""After which a worker counts as dead [s]; a busy machine may need long to start one."""
_LOG = logging.getLogger("rankcast.serve")


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How a server runs.

    Attributes:
        host: address to listen at.
        port: 0 for any that is free.
        workers: processes.
        grace_s: time for requests to finish once the server is told to stop [s].
        most_connections: of each worker; more are answered 503.
        json_logs: whether log lines are JSON, for machines, or plain, for people.

    Raises:
        ConfigError: no worker, or a port that does not exist.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    grace_s: float = 30.0
    most_connections: int = 1000
    json_logs: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot listen."""
        if self.workers < 1 or not 0 <= self.port < 2**16 or not self.grace_s > 0:
            raise ConfigError(
                f"A server has at least one worker, a port from 0 to 65535 and a positive grace, "
                f"got {self}."
            )


def serve(store: Store, settings: ServerSettings, process: ProcessSettings) -> None:
    """Serve until SIGINT or SIGTERM; requests under way then finish.

    Raises:
        DeliveryError: nobody can listen there.
    """
    config = uvicorn.Config(
        AppFactory(store, settings),
        factory=True,
        workers=process.workers,
        http=PatientProtocol,
        ws="none",
        log_config=log_config(as_json=process.json_logs),
        access_log=False,
        server_header=False,
        limit_concurrency=process.most_connections,
        timeout_graceful_shutdown=max(1, round(process.grace_s)),
        timeout_worker_healthcheck=_WORKER_SILENCE_S,
    )
    signal.signal(signal.SIGTERM, _exit)  # uvicorn raises it again when it has stopped in order
    with _listen(process.host, process.port) as sock:
        host, port = sock.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _LOG.info("Listening on http://%s; Ctrl-C stops.", address)
        if process.workers == 1:
            uvicorn.Server(config).run(sockets=[sock])
            return
        with tempfile.TemporaryDirectory(prefix="rankcast-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read by the workers
            Multiprocess(config, sockets=[sock]).run()


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens: who connects before the server is there waits for it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise DeliveryError(
            f"Nobody can listen at {host}, port {port}: {error.strerror}. Choose another --port or "
            f"--host."
        ) from error
    sock.set_inheritable(True)
    return sock


def _exit(number: int, frame: object) -> None:
    del number, frame
    sys.exit(0)


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
        return create_app(self.store, self.settings)


class PatientProtocol(Protocol):
    """uvicorn's protocol, with limits on the time and length of a request's head.

    uvicorn limits how long a connection may idle between requests, but not how long a head may
    take, so that clients who send one byte a minute could keep every connection busy. With
    httptools, which is many times faster than h11, it does not limit its length either.
    """

    _head_due: asyncio.TimerHandle | None = None
    _n_head: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take data; wait on, but no longer, if they do not complete a head."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._n_head += len(data)
            if self._n_head > LARGEST_HEAD:
                self.transport.close()
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        self._n_head = 0
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _give_up(self) -> None:
        self._head_due = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class JsonLines(logging.Formatter):
    """Writes a record, and the fields that it carries, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """Writes a record, and the fields that it carries, for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        fields = getattr(record, "fields", {}).items()
        words = [record.getMessage(), *(f"{key}={value}" for key, value in fields)]
        line = f"{time} {level}{' '.join(words)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_config(*, as_json: bool) -> dict[str, Any]:
    """Return the setting of `logging` for a server, which logs to standard error."""
    formatter = JsonLines if as_json else PlainLines
    loud = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "loggers": {"uvicorn": loud, "rankcast.serve": loud},
    }
