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

from rankcast.delivery.rehearsal.proxy import DeviceLink, LinkProxy
from rankcast.delivery.rehearsal.shaping import Losses, RateSchedule, Shaper

RATE_BPS = 1e6
LOSS = 0.05
STALL_S = 0.2
"""Least time after which Linux sends a segment again that nobody acknowledged."""
RANKCAST = (sys.executable, "-c", "from rankcast.cli import main; main()")
_LISTENING = re.compile(r"running on http://[0-9.]+:(\d+)")


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
            timeout=300,
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
    schedule = RateSchedule.constant(RATE_BPS)
    ways = [Shaper(schedule, Losses(LOSS, STALL_S, rng)) for _ in range(2)]
    link = DeviceLink(*ways)
    with _served(store, database) as port, LinkProxy([link], port):
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
        said = []
        for line in process.stderr:
            said.append(line)
            found = _LISTENING.search(line)
            if found:
                yield int(found[1])
                return
        raise AssertionError("".join(said))
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(30)


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
