"""Announce new releases over MQTT: a message wakes devices early and decides nothing.

A message says that something may have changed. What changed, a device learns from signed metadata
alone, so that a broker, or whoever can write to it, can make devices look sooner or later, and
nothing else. The last message of each adapter is retained, so that a device which was away gets it.
"""

from __future__ import annotations

import os
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from rankcast.errors import ConfigError, UnavailableError
from rankcast.release.manifest import checked_name

if TYPE_CHECKING:
    from paho.mqtt.client import Client


USER, PASSWORD = "RANKCAST_MQTT_USER", "RANKCAST_MQTT_PASSWORD"
"""Variables for what other users of a machine should not see in a list of processes."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_CONNECT_S = 10.0
_KEEPALIVE_S = 60
_AT_LEAST_ONCE = 1


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker of MQTT.

    Attributes:
        host: name or address.
        port: of TCP.
        is_tls: whether the connection is encrypted and the broker's certificate checked.
        user: to log in with; None for nobody.
        password: likewise.
    """

    host: str
    port: int
    is_tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the broker of `mqtt://[USER[:PASSWORD]@]HOST[:PORT]`, or `mqtts://` for TLS.

        Raises:
            ConfigError: no such address.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--mqtt takes mqtt://HOST:PORT; {error}.") from error
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/"):
            raise ConfigError("--mqtt takes mqtt://HOST:PORT, or mqtts://HOST:PORT for TLS.")
        user = unquote(parts.username) if parts.username else environment.get(USER)
        password = unquote(parts.password) if parts.password else environment.get(PASSWORD)
        if password and not user:
            raise ConfigError(f"A broker's password needs a user: set {USER}.")
        is_tls = parts.scheme == "mqtts"
        return cls(parts.hostname, port or _PORTS[parts.scheme], is_tls, user, password)

    def __str__(self) -> str:
        """Return the address, without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.is_tls else ''}://{host}:{self.port}"


def topic_of(adapter: str) -> str:
    """Return the topic of an adapter's releases.

    Raises:
        DeliveryError: no name of an adapter.
    """
    return f"rankcast/adapters/{checked_name(adapter)}"


def mqtt_client(broker: Broker) -> Client:
    """Return a client that is not connected yet.

    Raises:
        ConfigError: the extra is missing.
    """
    try:
        from paho.mqtt import client as mqtt  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigError("MQTT needs paho-mqtt: pip install 'rankcast[mqtt]'.") from error
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect_timeout = _CONNECT_S
    if broker.is_tls:
        client.tls_set_context(ssl.create_default_context())
    if broker.user is not None:
        client.username_pw_set(broker.user, broker.password)
    return client


def notify(broker: Broker, adapter: str, version: int, timeout_s: float = _CONNECT_S) -> None:
    """Tell devices that an adapter has a release, and keep the message for those that are away.

    Args:
        broker: that they listen to.
        adapter: its name.
        version: of the release, for people who look; devices do not read it.
        timeout_s: in which the broker has to take it [s].

    Raises:
        ConfigError: the extra is missing.
        UnavailableError: the broker did not take it.
    """
    client, answered, refusals = mqtt_client(broker), threading.Event(), []

    def on_connect(client: Client, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        del client, data, flags, properties
        if reason.is_failure:
            refusals.append(str(reason))
        answered.set()

    client.on_connect = on_connect
    try:
        client.connect(broker.host, broker.port, _KEEPALIVE_S)
        client.loop_start()
        if not answered.wait(timeout_s) or refusals:
            raise TimeoutError(refusals[0] if refusals else "no answer")
        sent = client.publish(topic_of(adapter), str(version), _AT_LEAST_ONCE, retain=True)
        sent.wait_for_publish(timeout_s)
        if not sent.is_published():
            raise TimeoutError("no answer")
    except (OSError, ValueError, RuntimeError) as error:
        raise UnavailableError(
            f"{broker} did not take the message ({error}). The release is active all the same, and "
            f"devices see it when they look next; publish the same again to send the message."
        ) from error
    finally:
        client.disconnect()
        client.loop_stop()


class ReleaseListener:
    """Listens for messages about one adapter, in a thread of its own, and comes back when cut off.

    Args:
        broker: to listen to.
        adapter: its name.
        on_connection: called with a sentence each time that the broker goes or comes back.
        reconnect_s: shortest and longest pause before another try [s].
    """

    def __init__(
        self,
        broker: Broker,
        adapter: str,
        on_connection: Callable[[str], None],
        reconnect_s: tuple[int, int] = (1, 120),
    ) -> None:
        self._broker, self._topic, self._say = broker, topic_of(adapter), on_connection
        self._news, self._last, self._connected = threading.Event(), b"", True
        client = self._client = mqtt_client(broker)
        client.reconnect_delay_set(*reconnect_s)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message

    def __enter__(self) -> Self:
        """Begin to listen; a broker that is away is no obstacle."""
        self._client.connect_async(self._broker.host, self._broker.port, _KEEPALIVE_S)
        self._client.loop_start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening."""
        self._client.disconnect()
        self._client.loop_stop()

    def has_news(self) -> bool:
        """Return whether a message came since this was asked last."""
        if not self._news.is_set():
            return False
        self._news.clear()
        return True

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: Any, more: Any) -> None:
        del data, flags, more
        if reason.is_failure:
            self._lost(str(reason))
            return
        client.subscribe(self._topic, _AT_LEAST_ONCE)
        if not self._connected:
            self._connected = True
            self._say(f"{self._broker} is back.")

    def _on_connect_fail(self, client: Client, data: Any) -> None:
        del client, data
        self._lost(str(sys.exception() or "no answer"))

    def _on_disconnect(self, client: Client, data: Any, flags: Any, reason: Any, more: Any) -> None:
        del client, data, flags, more
        if reason.is_failure:
            self._lost(str(reason))

    def _on_message(self, client: Client, data: Any, message: Any) -> None:
        """Remember the message, unless it is the retained one and came before."""
        del client, data
        if not message.retain or message.payload != self._last:
            self._news.set()
        self._last = message.payload

    def _lost(self, reason: str) -> None:
        if self._connected:
            self._connected = False
            self._say(
                f"{self._broker} is away ({reason}); the device looks for releases by itself."
            )
