"""A cloud and a device with 1 Mbit/s between them and 5 % of the packets lost, both ways.

In namespaces of the kernel's network where that is permitted (a veth pair, a token bucket filter,
and a packet filter that drops at random), else by a proxy of our own, which sends lost segments
again after a pause. The kernel's losses have no seed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.waiting import DEADLOCK_S
from rankcast.simulation.proxy import DeviceLink, LinkProxy
from rankcast.simulation.shaping import RateSchedule, Shaper

RATE_BPS = 1e6
LOSS = 0.05
STALL_S = 0.2
"""Least time after which Linux sends a segment again that nobody acknowledged."""
SEGMENT_BYTES = 1448
"""Payload of a TCP segment over Ethernet (1,500 bytes less IPv4, TCP and its time stamps)."""
RANKCAST = (sys.executable, "-m", "rankcast")
_LISTENING = re.compile(r"Listening on http://[0-9.]+:(\d+)")


class LossyShaper(Shaper):
    """One direction of a link that loses segments, each on its own, and sends them again.

    Args:
        schedule: the rate.
        share: of segments that get lost.
        stall_s: for which a lost one holds up what follows it [s].
        rng: draws which.
    """

    def __init__(
        self, schedule: RateSchedule, share: float, stall_s: float, rng: np.random.Generator
    ) -> None:
        super().__init__(schedule)
        self._share, self._stall_s, self._rng = share, stall_s, rng
        self._partial_bytes = 0
        self.n_lost = 0

    def send(self, n_bytes: int, now_s: float) -> float:
        n_segments, self._partial_bytes = divmod(self._partial_bytes + n_bytes, SEGMENT_BYTES)
        lost = int(self._rng.negative_binomial(n_segments, 1.0 - self._share)) if n_segments else 0
        self.n_lost += lost
        super().send(n_bytes + lost * SEGMENT_BYTES, now_s)
        self._free_s += lost * self._stall_s
        return self._free_s


@dataclass(frozen=True)
class LossyLink:
    """A device, a cloud, and what is between them.

    Attributes:
        url: of the server, as the device reaches it.
        on_device: what a command line begins with to run on the device.
    """

    url: str
    on_device: tuple[str, ...]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run rankcast on the device."""
        return subprocess.run(  # noqa: S603 - our own words, no shell
            [*self.on_device, *RANKCAST, *args], check=False, capture_output=True, text=True,
            timeout=DEADLOCK_S,
        )  # fmt: skip


def why_no_namespaces() -> str | None:
    """Return why this machine cannot emulate a link in its kernel; None if it can."""
    missing = [name for name in ("ip", "tc", "iptables") if shutil.which(name) is None]
    if missing:
        return f"namespaces need {', '.join(missing)}"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "namespaces need root"
    try:
        with _namespaces():
            return None
    except subprocess.CalledProcessError as error:
        return f"namespaces are not permitted: {error.stderr.strip() or error.cmd}"


@contextmanager
def in_the_kernel(store: Path, database: str) -> Iterator[LossyLink]:
    """Serve a store in one namespace, and yield a device in another."""
    with (
        _namespaces() as (cloud, device, address),
        _served(store, database, on=("ip", "netns", "exec", cloud), host=address) as port,
    ):
        yield LossyLink(f"http://{address}:{port}", ("ip", "netns", "exec", device))


@contextmanager
def by_a_proxy(store: Path, database: str) -> Iterator[LossyLink]:
    """Serve a store, and yield a device that reaches it through a proxy."""
    rng = np.random.default_rng(0)
    schedule = RateSchedule(np.array([RATE_BPS]))
    ways = [LossyShaper(schedule, LOSS, STALL_S, rng) for _ in range(2)]
    link = DeviceLink(*ways)
    with _served(store, database) as port, LinkProxy([link], lambda: port):
        yield LossyLink(f"http://127.0.0.1:{link.port}", ())


WAYS: dict[str, Callable[[Path, str], object]] = {"kernel": in_the_kernel, "proxy": by_a_proxy}


@contextmanager
def _served(
    store: Path, database: str, on: Sequence[str] = (), host: str = "127.0.0.1"
) -> Iterator[int]:
    args = ["serve", "--store", str(store), "--database", database, "--host", host, "--port", "0"]
    process = subprocess.Popen(  # noqa: S603 - our own words, no shell
        [*on, *RANKCAST, *args], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            listening = _LISTENING.search(line)
            if listening:
                yield int(listening[1])
                return
        raise AssertionError("".join(lines))
    finally:
        process.terminate()
        process.stderr.close()
        process.wait()


@contextmanager
def _namespaces() -> Iterator[tuple[str, str, str]]:
    """Yield the cloud's namespace, the device's, and the cloud's address."""
    number = os.getpid() % 16384
    network = f"10.{64 + number // 256}.{number % 256}"
    names = [f"rankcast-{side}-{os.getpid()}" for side in ("cloud", "edge")]
    ends = [f"rc{side}{os.getpid()}" for side in "ce"]
    with ExitStack() as stack:
        for name in names:
            _do("ip", "netns", "add", name)
            stack.callback(_do, "ip", "netns", "del", name)
        _do("ip", "link", "add", ends[0], "netns", names[0], "type", "veth",
            "peer", "name", ends[1], "netns", names[1])  # fmt: skip
        for host, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            inside = ("ip", "netns", "exec", name)
            _do(*inside, "ip", "addr", "add", f"{network}.{host}/30", "dev", end)
            _do(*inside, "ip", "link", "set", end, "up")
            _do(*inside, "tc", "qdisc", "add", "dev", end, "root", "tbf",
                "rate", f"{RATE_BPS:.0f}bit", "burst", "4kb", "latency", "400ms")  # fmt: skip
            _do(*inside, "iptables", "-A", "INPUT", "-i", end, "-m", "statistic",
                "--mode", "random", "--probability", str(LOSS), "-j", "DROP")  # fmt: skip
        yield names[0], names[1], f"{network}.1"


def _do(*args: str) -> None:
    subprocess.run(args, check=True, capture_output=True, text=True)  # noqa: S603 - likewise
