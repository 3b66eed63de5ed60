"""The simulation itself: start a cloud and devices, publish, break things, and watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rankcast.codec.container import Container
from rankcast.release.manifest import Manifest
from rankcast.release.verify import trust_root
from rankcast.simulation.cloud import Cloud
from rankcast.simulation.device import Device, join_all
from rankcast.simulation.links import Links
from rankcast.simulation.proxy import DeviceLink, LinkProxy
from rankcast.simulation.results import (
    DeviceResult,
    Publication,
    ServerResult,
    SimulationResult,
    device_result,
)
from rankcast.simulation.settings import SimulationSettings

_TICK_S = 0.2
_END_S = 60.0


class Simulation:
    """A cloud, devices and their links.

    Args:
        settings: how to simulate.
        links: of the devices.
        releases: files of the first release and of the second.
        folder: for keys, store, database and devices.
    """

    def __init__(
        self,
        settings: SimulationSettings,
        links: Links,
        releases: tuple[Sequence[Container], Sequence[Container]],
        folder: Path,
    ) -> None:
        self._settings, self._links, self._releases = settings, links, releases
        self._cloud, self._folder = Cloud(folder, settings.adapter), folder
        self._schedules = links.schedules()
        self._rng = np.random.default_rng(settings.seed)
        self._device_links = [DeviceLink.of(schedule) for schedule in self._schedules]
        self._published: list[Publication] = []
        self._devices: list[Device] = []
        self._restarting: Future[None] | None = None
        self._restarter = ThreadPoolExecutor(1)
        self._stopping = threading.Event()
        self._began_s = 0.0

    def run(
        self,
        stopping: Callable[[], bool],
        on_progress: Callable[[SimulationResult], None] | None = None,
    ) -> SimulationResult:
        """Simulate to the end, or until asked to stop, and return what came out.

        Args:
            stopping: says whether to stop.
            on_progress: called with what there is so far, several times a second.

        Raises:
            DeliveryError: the server does not come up.
        """
        with ExitStack() as stack:
            proxy = self._start(stack)
            while self._now_s() < self._settings.duration_s and not stopping():
                self._act()
                if on_progress is not None:
                    on_progress(self.result())
                time.sleep(_TICK_S)
            result = self.result()
        unended = join_all(self._devices, _END_S)
        cloud, late_s = self._cloud, proxy.late_s
        server = ServerResult(dict(cloud.answers()), cloud.tracebacks(), cloud.n_starts)
        p95_s = float(np.quantile(late_s, 0.95)) if late_s else 0.0
        return SimulationResult(
            result.elapsed_s, result.releases, result.devices, server, p95_s, unended
        )

    def result(self) -> SimulationResult:
        """Return what there is now."""
        now_s = self._now_s()
        devices = [self._result_of(device, now_s) for device in self._devices]
        return SimulationResult(now_s, tuple(self._published), devices)

    def _start(self, stack: ExitStack) -> LinkProxy:
        """Start everything; the stack ends it: devices first, then links, then the server."""
        settings = self._settings
        first = self._cloud.publish(self._releases[0])
        tokens = self._cloud.add_devices(self._links.n_devices)
        self._cloud.start()
        stack.callback(self._cloud.stop)
        stack.callback(self._finish_restart)
        proxy = stack.enter_context(
            LinkProxy(
                self._device_links, lambda: self._cloud.port, resets=settings.resets,
                rng=self._rng.spawn(1)[0],
            )
        )  # fmt: skip
        self._published.append(Publication(0.0, first))
        self._began_s = time.monotonic() - proxy.now_s()
        self._devices.extend(self._device(n, first, token) for n, token in enumerate(tokens))
        stack.callback(self._stopping.set)
        for device in self._devices:
            device.thread.start()
        return proxy

    def _device(self, number: int, manifest: Manifest, token: str) -> Device:
        folder, radio = self._folder / "devices" / f"{number:03d}", self._links.radio
        trust_root(folder / "trust", self._cloud.root)
        url = f"http://127.0.0.1:{self._device_links[number].port}"
        return Device(
            number, self._settings, manifest, folder, url, token, self._rng.spawn(1)[0],
            self._now_s, self._stopping,
            None if radio is None else lambda: radio(self._snr_db(number)),
        )  # fmt: skip

    def _act(self) -> None:
        """Publish the second release when it is time, and restart the server."""
        share = self._now_s() / self._settings.duration_s
        if len(self._published) == 1 and share >= self._settings.update_at:
            manifest = self._cloud.publish(self._releases[1])
            self._published.append(Publication(self._now_s(), manifest))
        restart_at = self._settings.restart_at
        if restart_at is not None and self._restarting is None and share >= restart_at:
            self._restarting = self._restarter.submit(self._cloud.restart)

    def _finish_restart(self) -> None:
        if self._restarting is not None:
            self._restarting.result()

    def _result_of(self, device: Device, now_s: float) -> DeviceResult:
        number, link = device.number, self._device_links[device.number]
        snr_db = self._links.snr_db
        return device_result(
            number, device.log, self._schedules[number], self._published, now_s=now_s,
            deadline_s=self._settings.deadline_s, link_bits=8 * link.down.n_bytes,
            n_resets=link.n_resets,
            mean_snr_db=None if snr_db is None else float(snr_db[:, number].mean()),
        )  # fmt: skip

    def _snr_db(self, number: int) -> float:
        assert self._links.snr_db is not None
        step = int(self._now_s() / self._links.step_s) % len(self._links.snr_db)
        return float(self._links.snr_db[step, number])

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s
