from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("paho.mqtt")

from helpers.programs import free_port
from rankcast.errors import ConfigError, DeliveryError, UnavailableError
from rankcast.release.notify import Broker, ReleaseListener, notify, topic_of


def test_addresses_are_read_and_shown_without_the_password() -> None:
    assert Broker.of("mqtt://host", {}) == Broker("host", 1883)
    found = Broker.of("mqtts://a%40b:s%2Fx@host:99", {})
    assert found == Broker("host", 99, True, "a@b", "s/x")
    assert (str(found), "s/x" in repr(found)) == ("mqtts://host:99", False)
    hidden = {"RANKCAST_MQTT_USER": "pi", "RANKCAST_MQTT_PASSWORD": "secret"}
    assert Broker.of("mqtts://[::1]", hidden) == Broker("::1", 8883, True, "pi", "secret")
    assert str(Broker.of("mqtts://[::1]", {})) == "mqtts://[::1]:8883"


@pytest.mark.parametrize(
    "url", ["host:1883", "http://host", "mqtt://", "mqtt://host:x", "mqtt://host/topic", "mqtt://["]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="mqtt://HOST:PORT"):
        Broker.of(url, {})


def test_a_password_needs_a_user() -> None:
    with pytest.raises(ConfigError, match="RANKCAST_MQTT_USER"):
        Broker.of("mqtt://host", {"RANKCAST_MQTT_PASSWORD": "secret"})


@pytest.mark.parametrize("name", ["+", "#", "a/b", "A"])
def test_nobody_listens_to_more_than_an_adapter(name: str) -> None:
    with pytest.raises(DeliveryError):
        topic_of(name)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    with pytest.raises(ConfigError, match=r"pip install 'rankcast\[mqtt\]'"):
        ReleaseListener(Broker("host", 1883), "sst2", print)


def test_a_broker_that_is_away_is_an_error_in_words() -> None:
    broker = Broker("127.0.0.1", free_port())
    with pytest.raises(UnavailableError, match=r"active all the same.*publish the same again"):
        notify(broker, "sst2", 1)


def test_a_retained_message_counts_once_however_often_a_device_comes_back() -> None:
    listener = ReleaseListener(Broker("host", 1883), "sst2", print)

    def hears(payload: bytes, *, kept: bool) -> bool:
        message = SimpleNamespace(payload=payload, retain=kept)
        listener._on_message(listener._client, None, message)
        return listener.has_news()

    assert not listener.has_news()
    assert hears(b"1", kept=True)
    assert not hears(b"1", kept=True)
    assert hears(b"1", kept=False)
    assert hears(b"2", kept=True)
    assert not hears(b"2", kept=True)
