"""The rehearsal itself: raise a cloud and devices, publish, break things, and look."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankcast.codec.container import Container
from rankcast.delivery.edge.advice import RadioLink
from rankcast.delivery.rehearsal.cloud import Cloud
from rankcast.delivery.rehearsal.device import Device, DeviceSettings, wait_for
from rankcast.delivery.rehearsal.proxy import DeviceLink, LinkProxy
from rankcast.delivery.rehearsal.results import (
    DeviceResult,
    Publication,
    Rehearsed,
    ServerResult,
    device_result,
)
from rankcast.delivery.rehearsal.shaping import RateSchedule
from rankcast.errors import ConfigError
from rankcast.records import FloatArray

_LOOK_S = 0.2
_END_S = 15.0
_PUBLISH_AT, _RESTART_AT = 0.5, 0.75
"""Shares of the rehearsal."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to rehearse.

    Attributes:
        adapter: name of what is published.
        duration_s: [s].
        deadline_s: time that a device gives a transfer [s].
        every_s: from the end of a sync to the next, drawn between a half and the whole of it [s].
        assumed_bps: rate that a device plans with before it measured any [bit/s].
        resets: probability that a connection is reset.
        restarts: whether the server is killed and started again after three quarters of the time.
        seed: of pauses and faults.

    Raises:
        ConfigError: a time that is not positive, or no probability.
    """

    adapter: str = "rehearsal"
    duration_s: float = 120.0
    deadline_s: float = 10.0
    every_s: float = 4.0
    assumed_bps: float = 1e6
    resets: float = 0.0
    restarts: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        times = (self.duration_s, self.deadline_s, self.every_s, self.assumed_bps)
        if not all(0 < x < float("inf") for x in times) or not 0 <= self.resets <= 1:
            raise ConfigError(
                f"A rehearsal has positive times and rates and a probability of resets, got {self}."
            )


@dataclass(frozen=True, eq=False)
class Links:
    """The links of all devices.

    Attributes:
        rates_bps: (T, N) rate of every device in every step [bit/s].
        step_s: length of a step [s].
        snr_db: (T, N) SNR [dB]; None where only throughput is known.
        radio: what a modem says at an SNR; None to let devices measure.
    """

    rates_bps: FloatArray
    step_s: float
    snr_db: FloatArray | None = None
    radio: Callable[[float], RadioLink] | None = None

    @property
    def n_devices(self) -> int:
        """N."""
        return self.rates_bps.shape[1]

    def schedules(self) -> list[RateSchedule]:
        """Return the rate of each device over time.

        Raises:
            LinkError: a link that never carries anything.
        """
        return [RateSchedule(rates, self.step_s) for rates in self.rates_bps.T]


class Stage:
    """Everything that takes part; a context, after which nothing of it runs any more.

    Args:
        settings: how to rehearse.
        links: of the devices.
        releases: files of the first release and of the second, which follows half-way.
        folder: for keys, store, database and devices.
    """

    def __init__(
        self,
        settings: Settings,
        links: Links,
        releases: tuple[Sequence[Container], Sequence[Container]],
        folder: Path,
    ) -> None:
        self.settings, self.links, self._releases = settings, links, releases
        self._cloud = Cloud(folder, settings.adapter)
        self._folder = folder
        self._schedules = links.schedules()
        self._rng = np.random.default_rng(settings.seed)
        self._stopping = threading.Event()
        self._device_links = [DeviceLink.of(schedule) for schedule in self._schedules]
        self._published: list[Publication] = []
        self._devices: list[Device] = []
        self._proxy: LinkProxy | None = None
        self._began_s = 0.0
        self._restarting: threading.Thread | None = None

    def run(
        self, stopping: Callable[[], bool], look: Callable[[Rehearsed], None] | None = None
    ) -> Rehearsed:
        """Rehearse to the end, or until asked to stop, and return what came out.

        Args:
            stopping: says whether to stop.
            look: called with what there is so far, several times a second.

        Raises:
            DeliveryError: the server does not come up.
            ConfigError: an extra is missing.
        """
        with ExitStack() as stack:
            self._raise_all(stack)
            while self._now_s() < self.settings.duration_s and not stopping():
                self._act()
                if look is not None:
                    look(self.result())
                time.sleep(_LOOK_S)
            end_s = self._now_s()
            found = self.result()
            self._stopping.set()
        unended = wait_for(self._devices, _END_S)
        assert self._proxy is not None
        late = self._proxy.late_s
        server = ServerResult(
            dict(self._cloud.answers()), self._cloud.tracebacks(), self._cloud.n_starts
        )
        return Rehearsed(
            end_s, found.releases, found.devices, server,
            float(np.quantile(late, 0.95)) if late else 0.0, unended,
        )  # fmt: skip

    def result(self) -> Rehearsed:
        """Return what there is now."""
        now_s = self._now_s()
        devices = [self._result_of(device, now_s) for device in self._devices]
        return Rehearsed(now_s, tuple(self._published), devices)

    def _raise_all(self, stack: ExitStack) -> None:
        first = self._cloud.publish(self._releases[0])
        tokens = self._cloud.tokens(self.links.n_devices)
        stack.callback(self._cloud.stop)
        port = self._cloud.start()
        proxy = LinkProxy(
            self._device_links, port, resets=self.settings.resets, rng=self._rng.spawn(1)[0]
        )
        self._proxy = stack.enter_context(proxy)
        self._published.append(Publication(0.0, first))
        self._began_s = time.monotonic() - proxy.now_s()
        common = DeviceSettings(
            self.settings.adapter, str(first.base.fingerprint), self._cloud.root,
            self.settings.deadline_s, self.settings.every_s, self.settings.assumed_bps,
        )  # fmt: skip
        self._devices.extend(self._device(n, common, token) for n, token in enumerate(tokens))
        stack.callback(self._stopping.set)
        for device in self._devices:
            device.thread.start()

    def _device(self, number: int, common: DeviceSettings, token: str) -> Device:
        radio = self.links.radio
        says = None if radio is None else lambda: radio(self._snr_db(number))
        url = f"http://127.0.0.1:{self._device_links[number].port}"
        return Device(
            number, common, self._folder / "devices" / f"{number:03d}", url, token,
            self._rng.spawn(1)[0], self._now_s, self._stopping, says,
        )  # fmt: skip

    def _act(self) -> None:
        """Publish the second release when it is time, and kill the server."""
        share = self._now_s() / self.settings.duration_s
        if len(self._published) == 1 and share >= _PUBLISH_AT:
            manifest = self._cloud.publish(self._releases[1])
            self._published.append(Publication(self._now_s(), manifest))
        if self.settings.restarts and self._restarting is None and share >= _RESTART_AT:
            self._restarting = threading.Thread(target=self._restart, name="restart", daemon=True)
            self._restarting.start()

    def _restart(self) -> None:
        self._cloud.kill()
        self._cloud.start()

    def _result_of(self, device: Device, now_s: float) -> DeviceResult:
        number, link = device.number, self._device_links[device.number]
        snr_db = self.links.snr_db
        return device_result(
            number, device.log, self._schedules[number], self._published, now_s=now_s,
            deadline_s=self.settings.deadline_s, link_bits=8 * link.down.n_bytes,
            n_resets=link.n_resets,
            mean_snr_db=None if snr_db is None else float(snr_db[:, number].mean()),
        )  # fmt: skip

    def _snr_db(self, number: int) -> float:
        assert self.links.snr_db is not None
        step = int(self._now_s() / self.links.step_s) % len(self.links.snr_db)
        return float(self.links.snr_db[step, number])

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s
